//! A control group for the container, in the controllers that are there (cgroups(7)).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use std::os::unix::process::CommandExt;

/// Controllers of version 1 that a container usually has. That of CPU sets takes no process until it has been set up.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "blkio", "pids"];
/// How long the processes of a group may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// A group that is there until this is dropped. If we are killed, the janitor removes it.
#[derive(Debug)]
pub struct ControlGroup {
    folders: Vec<PathBuf>,
    members: Vec<File>,
    janitor: Child,
}

impl ControlGroup {
    /// Makes one; none if no control groups are mounted. `janitor` is the command that does [`clean_up`].
    ///
    /// # Errors
    /// They are mounted, but none can be made.
    pub fn make(name: &str, janitor: &dyn Fn() -> Command) -> io::Result<Option<Self>> {
        let folders = places("/proc/self/mounts", "/proc/self/cgroup", name);
        if folders.is_empty() {
            return Ok(None);
        }
        // First, so that there is none without it.
        let janitor = janitor()
            .args(&folders)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let mut group = Self {
            folders,
            members: Vec::new(),
            janitor,
        };
        for folder in &group.folders {
            fs::create_dir(folder)?;
            let members = folder.join("cgroup.procs");
            group
                .members
                .push(File::options().write(true).open(members)?);
        }
        Ok(Some(group))
    }

    /// The files `cgroup.procs`: who writes `0` to all of them is in the group, with all it starts from then on.
    #[must_use]
    pub fn members(&self) -> &[File] {
        &self.members
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// Waits until our starter closes our standard input, or is no more, and removes these groups.
pub fn clean_up(folders: &[PathBuf]) {
    // Nothing is said there.
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    let deadline = Instant::now() + PATIENCE;
    for folder in folders {
        while folder.exists() && fs::remove_dir(folder).is_err() && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
        }
    }
}

/// The folders of a group called `name` below our own groups.
fn places(mounts: &str, ours: &str, name: &str) -> Vec<PathBuf> {
    let (Ok(mounts), Ok(ours)) = (fs::read_to_string(mounts), fs::read_to_string(ours)) else {
        return Vec::new();
    };
    places_in(&mounts, &ours, name)
}

fn places_in(mounts: &str, ours: &str, name: &str) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(mount), Some(kind), Some(options)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let options: Vec<&str> = options.split(',').collect();
        let own = match kind {
            "cgroup2" => own_group(ours, |controllers| controllers.is_empty()),
            "cgroup" => CONTROLLERS
                .iter()
                .filter(|name| options.contains(name))
                .find_map(|name| {
                    own_group(ours, |controllers| {
                        controllers.split(',').any(|one| one == *name)
                    })
                }),
            _ => None,
        };
        if let Some(own) = own {
            let below = Path::new(mount).join(own.trim_start_matches('/'));
            // In a container of ours, the mount may be our own group already.
            let parent = if below.is_dir() { below } else { mount.into() };
            let place = parent.join(name);
            if !places.contains(&place) {
                places.push(place);
            }
        }
    }
    places
}

/// Our group in the hierarchy with such controllers: a line is `ID:CONTROLLERS:PATH`.
fn own_group(ours: &str, wanted: impl Fn(&str) -> bool) -> Option<&str> {
    ours.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        wanted(controllers).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_two_has_one_place() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("user.slice/a")).unwrap();
        let root = root.path().display();
        let mounts = format!("proc /proc proc rw 0 0\ncgroup2 {root} cgroup2 rw,nsdelegate 0 0\n");
        let place = |ours: &str| places_in(&mounts, ours, "x");
        assert_eq!(
            place("0::/user.slice/a\n"),
            [PathBuf::from(format!("{root}/user.slice/a/x"))]
        );
        assert_eq!(
            place("0::/elsewhere\n"),
            [PathBuf::from(format!("{root}/x"))]
        );
    }

    #[test]
    fn version_one_has_a_place_for_each_controller_of_a_container() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().display();
        let mounts = format!(
            "cgroup {root}/cpu cgroup rw,cpu,cpuacct 0 0\ncgroup {root}/cpuset cgroup rw,cpuset 0 0\n\
             cgroup {root}/memory cgroup rw,memory 0 0\n"
        );
        let ours = "5:cpuset:/\n4:cpu,cpuacct:/\n3:memory:/\n";
        assert_eq!(
            places_in(&mounts, ours, "x"),
            [
                PathBuf::from(format!("{root}/cpu/x")),
                PathBuf::from(format!("{root}/memory/x"))
            ]
        );
        assert!(places_in("", ours, "x").is_empty());
    }
}
