//! Latencies between a histogram and the form in which they are told and kept.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::ZlibDecoder;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use thiserror::Error;

use crate::spec::Latency;

/// The longest latency that is told from longer ones, in nanoseconds.
pub const LONGEST_NS: u64 = 600_000_000_000;

/// Of a histogram's serialized form: its kind, and the length of what follows.
const HEAD_BYTES: usize = 8;

/// What a serialized histogram, version 2, that is not compressed begins with.
const PLAIN: [u8; 4] = 0x1c84_9313_u32.to_be_bytes();

/// More than a histogram of these bounds takes.
const MAX_BYTES: u64 = 1 << 20;

/// Significant decimal digits of a latency.
const DIGITS: u8 = 3;

/// Why a text is no histogram, or a histogram cannot be put into a text.
#[derive(Debug, Error)]
pub enum LatencyError {
    /// It is not base64.
    #[error("a histogram that is not base64: {0}")]
    Base64(#[from] base64::DecodeError),
    /// It is not a compressed HDR histogram.
    #[error("not an HDR histogram: {0}")]
    Histogram(String),
    /// The histogram cannot be written in that form.
    #[error("a histogram cannot be written: {0}")]
    Write(String),
}

/// An empty histogram for latencies in nanoseconds, from 1 to [`LONGEST_NS`]. Use `saturating_record` with it.
///
/// # Errors
/// None with these bounds.
pub fn new_histogram() -> Result<Histogram<u64>, LatencyError> {
    Histogram::new_with_bounds(1, LONGEST_NS, DIGITS)
        .map_err(|error| LatencyError::Histogram(error.to_string()))
}

impl Latency {
    /// What the histogram, of nanoseconds, says. The load program and whoever adds up histograms call it.
    ///
    /// # Errors
    /// [`LatencyError::Write`]
    pub fn of(histogram: &Histogram<u64>) -> Result<Self, LatencyError> {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(histogram, &mut bytes)
            .map_err(|error| LatencyError::Write(error.to_string()))?;
        Ok(Self {
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
            histogram: STANDARD.encode(bytes),
        })
    }

    /// All the latencies. Whoever draws them calls it.
    ///
    /// # Errors
    /// The text in [`histogram`](Self::histogram) is not what [`Self::of`] makes.
    pub fn histogram(&self) -> Result<Histogram<u64>, LatencyError> {
        let bytes = STANDARD.decode(&self.histogram)?;
        let inflated = inflate(&bytes)?;
        Deserializer::new()
            .deserialize(&mut inflated.as_slice())
            .map_err(|error| LatencyError::Histogram(error.to_string()))
    }
}

/// The histogram within the compressed form, which a guest may have made: the deserializer takes as much memory as
/// either says it has, so it must have that.
fn inflate(bytes: &[u8]) -> Result<Vec<u8>, LatencyError> {
    let wrong = |text: &str| LatencyError::Histogram(text.to_owned());
    let body = bytes.get(HEAD_BYTES..).ok_or(wrong("it is too short"))?;
    let mut inflated = Vec::new();
    ZlibDecoder::new(body)
        .take(MAX_BYTES)
        .read_to_end(&mut inflated)
        .map_err(|error| wrong(&error.to_string()))?;
    // Compressed once more, it would have another length within.
    if !inflated.starts_with(&PLAIN) {
        return Err(wrong("it has no plain histogram in it"));
    }
    let length = inflated
        .get(4..HEAD_BYTES)
        .and_then(|it| it.try_into().ok());
    let length = u32::from_be_bytes(length.ok_or(wrong("it is too short"))?);
    if u64::from(length) > inflated.len() as u64 {
        return Err(wrong("it is shorter than it says"));
    }
    Ok(inflated)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    fn some() -> Histogram<u64> {
        let mut histogram = new_histogram().unwrap();
        for value in 1..=1000_u64 {
            histogram.saturating_record(value * 1000);
        }
        histogram
    }

    fn assert_near(value: u64, expected: u64) {
        assert!(value.abs_diff(expected) * 1000 <= expected, "{value}");
    }

    #[test]
    fn percentiles_of_known_latencies() {
        let latency = Latency::of(&some()).unwrap();
        assert_near(latency.p50_ns, 500_000);
        assert_near(latency.p90_ns, 900_000);
        assert_near(latency.p99_ns, 990_000);
        assert_near(latency.p999_ns, 999_000);
        assert_near(latency.max_ns, 1_000_000);
    }

    #[test]
    fn a_histogram_survives_its_text() {
        let histogram = some();
        let latency = Latency::of(&histogram).unwrap();
        assert_eq!(latency.histogram().unwrap(), histogram);
        // The head of an HDR histogram, V2 compressed: the cookie 0x1c849314, in base64.
        assert!(latency.histogram.starts_with("HISTFA"), "{latency:?}");
    }

    #[test]
    fn longer_than_the_longest_is_the_longest() {
        let mut histogram = new_histogram().unwrap();
        histogram.saturating_record(u64::MAX);
        assert_near(Latency::of(&histogram).unwrap().max_ns, LONGEST_NS);
    }

    #[test]
    fn other_texts_are_no_histograms() {
        let latency = Latency::of(&some()).unwrap();
        for text in ["", "?", "AAAA", &latency.histogram[..40]] {
            let histogram = text.to_owned();
            let broken = Latency {
                histogram,
                ..latency.clone()
            };
            assert!(broken.histogram().is_err(), "{text}");
        }
    }

    #[test]
    fn a_histogram_that_claims_to_be_huge_takes_no_memory() {
        let compressed = |content: &[u8]| {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(content).unwrap();
            let body = encoder.finish().unwrap();
            let length = u32::try_from(body.len()).unwrap().to_be_bytes();
            let kind = 0x1c84_9314_u32.to_be_bytes();
            [&kind[..], &length, &body].concat()
        };
        let once = compressed(&[&PLAIN[..], &u32::MAX.to_be_bytes(), &[0; 64]].concat());
        let twice = compressed(&once);
        for (bytes, expected) in [
            (once, "it is shorter than it says"),
            (twice, "it has no plain histogram in it"),
        ] {
            let latency = Latency {
                histogram: STANDARD.encode(bytes),
                ..Latency::of(&some()).unwrap()
            };
            let error = latency.histogram().unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        }
    }
}
