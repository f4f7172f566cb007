//! What the host's CPUs spent on this process, by thread.

use std::fs;
use std::io;
use std::path::Path;

/// A thread of this process, and its CPU time since it began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ThreadTime {
    /// The thread's number on the host (`gettid`).
    pub tid: u32,
    /// Its name, as in `vcpu0`; at most 15 bytes are kept by the host.
    pub name: String,
    /// All of it, in nanoseconds, where the host says so exactly.
    pub exact_ns: Option<u64>,
    /// How it is divided.
    pub ticks: Ticks,
}

/// CPU time, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// Running guest code.
    pub guest_ns: u64,
    /// In user space.
    pub user_ns: u64,
    /// In the host's kernel.
    pub kernel_ns: u64,
}

impl CpuTimes {
    /// All of it.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.guest_ns
            .saturating_add(self.user_ns)
            .saturating_add(self.kernel_ns)
    }
}

impl ThreadTime {
    /// What the thread has spent since `earlier`, which is an earlier reading of it; since it began if there is none.
    /// The sum is exact where the host says it exactly. It is divided by the clock ticks in between, of which there is
    /// one every few milliseconds, unless the host's kernel is built to know better.
    #[must_use]
    pub fn since(&self, earlier: Option<&Self>) -> CpuTimes {
        let (exact_ns, ticks) = match earlier {
            None => (self.exact_ns, self.ticks),
            Some(earlier) => (
                self.exact_ns
                    .zip(earlier.exact_ns)
                    .map(|(now, then)| now.saturating_sub(then)),
                self.ticks.since(earlier.ticks),
            ),
        };
        ticks.divide(exact_ns)
    }
}

/// The threads of this process, by their numbers. Any thread.
///
/// # Errors
/// `/proc` is not to be read.
pub fn threads() -> io::Result<Vec<ThreadTime>> {
    of_folder(Path::new("/proc/self/task"))
}

fn of_folder(folder: &Path) -> io::Result<Vec<ThreadTime>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let tid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(tid) = tid else { continue };
        match of_thread(&entry.path(), tid) {
            Ok(thread) => threads.push(thread),
            // It has ended in the meantime.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    threads.sort_by_key(|thread| thread.tid);
    Ok(threads)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn of_thread(folder: &Path, tid: u32) -> io::Result<ThreadTime> {
    let stat = fs::read_to_string(folder.join("stat"))?;
    let ticks = Ticks::parse(&stat).ok_or_else(|| io::Error::other("/proc/TID/stat is unknown"))?;
    // Without CONFIG_SCHED_INFO there is none.
    let exact = fs::read_to_string(folder.join("schedstat"))
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok());
    let name = fs::read_to_string(folder.join("comm"))?;
    Ok(ThreadTime {
        tid,
        name: name.trim_end_matches('\n').to_owned(),
        exact_ns: exact,
        ticks,
    })
}

/// A thread's time as the host's clock ticks saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ticks {
    /// User space, without the guest.
    pub user: u64,
    /// Guest code.
    pub guest: u64,
    /// The host's kernel.
    pub kernel: u64,
}

impl Ticks {
    /// `proc_pid_stat(5)`: fields 14, 15 and 43, of which the first includes the last.
    fn parse(stat: &str) -> Option<Self> {
        // The name may have blanks and parentheses in it.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let (user, kernel, guest) = (field(14)?, field(15)?, field(43)?);
        Some(Self {
            user: user.saturating_sub(guest),
            guest,
            kernel,
        })
    }

    /// The exact time, divided as the ticks say. Without ticks it is the kernel's, if there is any: a thread that ran
    /// for less than a tick has done system calls above all.
    fn divide(self, exact_ns: Option<u64>) -> CpuTimes {
        let all = u128::from(self.user) + u128::from(self.guest) + u128::from(self.kernel);
        let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        let by_ticks = u64::try_from(all * u128::from(tick_ns)).unwrap_or(u64::MAX);
        let total = exact_ns.unwrap_or(by_ticks);
        let share = |ticks: u64| {
            let share = (u128::from(total) * u128::from(ticks)).checked_div(all);
            u64::try_from(share.unwrap_or(0)).unwrap_or(u64::MAX)
        };
        let (user_ns, guest_ns) = (share(self.user), share(self.guest));
        CpuTimes {
            guest_ns,
            user_ns,
            kernel_ns: total - user_ns - guest_ns,
        }
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            guest: self.guest.saturating_sub(earlier.guest),
            kernel: self.kernel.saturating_sub(earlier.kernel),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const STAT: &str = "42 (a) b (c) S 1 42 42 0 -1 4194624 0 0 0 0 70 30 0 0 20 0 3 0 8 9 10 11 12 13 14 15 16 0 0 0 0 0 \
                        0 0 17 1 0 0 0 50 0 0 0 0 0 0 0 0 0\n";

    fn task(folder: &Path, tid: &str, stat: &str, schedstat: Option<&str>) {
        let folder = folder.join(tid);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("stat"), stat).unwrap();
        fs::write(folder.join("comm"), "a) b (c\n").unwrap();
        if let Some(text) = schedstat {
            fs::write(folder.join("schedstat"), text).unwrap();
        }
    }

    #[test]
    fn the_exact_time_is_divided_as_the_ticks_say() {
        let folder = tempfile::tempdir().unwrap();
        task(folder.path(), "42", STAT, Some("2000000001 5 6\n"));
        task(folder.path(), "7", STAT, None);
        let threads = of_folder(folder.path()).unwrap();
        assert_eq!(threads[0].tid, 7);
        let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        assert_eq!(threads[0].since(None).total_ns(), 100 * tick_ns);
        let exact = CpuTimes {
            guest_ns: 1_000_000_000,
            user_ns: 400_000_000,
            kernel_ns: 600_000_001,
        };
        assert_eq!((threads[1].tid, threads[1].name.as_str()), (42, "a) b (c"));
        assert_eq!(threads[1].since(None), exact);
    }

    #[test]
    fn the_time_between_is_divided_by_the_ticks_between() {
        let of = |exact_ns, [user, guest, kernel]: [u64; 3]| ThreadTime {
            exact_ns: Some(exact_ns),
            ticks: Ticks {
                user,
                guest,
                kernel,
            },
            ..ThreadTime::default()
        };
        let earlier = of(1_000_000_000, [50, 0, 50]);
        let later = of(1_100_000_000, [50, 3, 59]);
        let times = later.since(Some(&earlier));
        assert_eq!(times.user_ns, 0);
        assert_eq!(times.guest_ns, 25_000_000);
        assert_eq!(times.kernel_ns, 75_000_000);
        assert_eq!(later.since(Some(&later)), CpuTimes::default());
    }

    #[test]
    fn a_thread_without_a_tick_has_its_time() {
        let time = Ticks::default().divide(Some(1234));
        assert_eq!((time.total_ns(), time.kernel_ns), (1234, 1234));
    }

    #[test]
    fn what_is_no_thread_is_passed_over_and_nonsense_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes"), "").unwrap();
        // Ended between the listing and the reading.
        fs::create_dir(folder.path().join("9")).unwrap();
        assert_eq!(of_folder(folder.path()).unwrap(), []);
        task(folder.path(), "10", "42 (short) S 1", None);
        assert!(of_folder(folder.path()).is_err());
    }

    #[test]
    fn this_process_has_its_threads_and_busy_ones_have_time() {
        let (ready, is_ready) = channel();
        let (end, ends) = channel::<()>();
        let thread = std::thread::Builder::new().name("busy-one".into());
        let thread = thread.spawn(move || {
            let mut sum = 0_u64;
            let mut told = false;
            // Until the test has seen it: on a host that is busy itself, that may be a while.
            while ends.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                for i in 0..10_000 {
                    sum = std::hint::black_box(sum.wrapping_add(i));
                }
                if !std::mem::replace(&mut told, true) {
                    ready.send(()).unwrap();
                }
            }
        });
        let thread = thread.unwrap();
        is_ready.recv().unwrap();
        let busy = || {
            let mut threads = threads().unwrap().into_iter();
            threads.find(|thread| thread.name == "busy-one")
        };
        let first = busy().unwrap();
        while busy().unwrap().since(Some(&first)).total_ns() < 1_000_000 {}
        drop(end);
        thread.join().unwrap();
        assert!(busy().is_none());
    }
}
