//! Latencies of several samples together.

use hdrhistogram::Histogram;
use hdrhistogram::errors::AdditionError;
use thiserror::Error;
use tripath_load::latency::LatencyError;
use tripath_load::spec::Latency;

use crate::results::VariantResult;
use crate::stats::median;

/// Points of a curve for each factor of ten of slower operations.
const POINTS_PER_DECADE: u32 = 20;
/// A curve ends where fewer operations than this are slower: beyond are single events.
const LEAST_BEYOND: f64 = 10.0;

/// The histograms of a report make no curve.
#[derive(Debug, Error)]
pub enum CurveError {
    /// One cannot be read.
    #[error("a latency is damaged: {0}")]
    Damaged(#[from] LatencyError),
    /// Two do not fit together.
    #[error("latency histograms cannot be added up: {0}")]
    Mixed(#[from] AdditionError),
}

/// Percentiles in nanoseconds, each the median of those of all samples; the longest is that of all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percentiles {
    /// Half are faster.
    pub p50: f64,
    /// 90 % are faster.
    pub p90: f64,
    /// 99 % are faster.
    pub p99: f64,
    /// 99.9 % are faster.
    pub p999: f64,
    /// The slowest of all.
    pub max: f64,
}

impl Percentiles {
    /// Of a variant; none if its operations have no latency.
    #[must_use]
    pub fn of(variant: &VariantResult) -> Option<Self> {
        let of = |field: fn(&Latency) -> u64| {
            let all: Vec<f64> = latencies(variant).map(|l| field(l) as f64).collect();
            median(&all)
        };
        Some(Self {
            p50: of(|latency| latency.p50_ns)?,
            p90: of(|latency| latency.p90_ns)?,
            p99: of(|latency| latency.p99_ns)?,
            p999: of(|latency| latency.p999_ns)?,
            max: latencies(variant)
                .map(|l| l.max_ns as f64)
                .fold(0.0, f64::max),
        })
    }
}

/// One point of a percentile curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CurvePoint {
    /// The part of all operations that is slower, from 1 down.
    pub slower: f64,
    /// How long it takes at most otherwise, in nanoseconds.
    pub ns: f64,
}

/// The percentile curve of all samples of a variant together; empty if its operations have no latency.
///
/// # Errors
/// A histogram cannot be read.
pub fn curve(variant: &VariantResult) -> Result<Vec<CurvePoint>, CurveError> {
    let mut merged: Option<Histogram<u64>> = None;
    for latency in latencies(variant) {
        let histogram = latency.histogram()?;
        match &mut merged {
            Some(merged) => {
                merged.auto(true);
                merged.add(&histogram)?;
            }
            None => merged = Some(histogram),
        }
    }
    let Some(merged) = merged.filter(|merged| !merged.is_empty()) else {
        return Ok(Vec::new());
    };
    let operations = merged.len() as f64;
    let points = (0_u32..)
        .map(|step| 10_f64.powf(-f64::from(step) / f64::from(POINTS_PER_DECADE)))
        .take_while(|slower| slower * operations >= LEAST_BEYOND)
        .map(|slower| CurvePoint {
            slower,
            ns: merged.value_at_quantile(1.0 - slower) as f64,
        });
    Ok(points.collect())
}

fn latencies(variant: &VariantResult) -> impl Iterator<Item = &Latency> {
    let samples = variant.samples.iter();
    samples.filter_map(|sample| sample.load.latency.as_ref())
}
