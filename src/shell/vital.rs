//! Tasks without which a program is of no use: where one of them ends, the program does.
//!
//! A runtime catches a task's panic and goes on without it: a server whose registry is gone would answer "busy" for
//! ever, and nobody would start it again. So such a task takes the program along, with a line in the log, and the
//! service manager begins anew. What serves one connection or answers one question is no such task: its panic costs
//! that one.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard};

use tracing::error;

/// The program's status then, as `EX_SOFTWARE` of `sysexits.h`.
pub const FATAL: u8 = 70;

/// What a task of this name does; a panic in it ends the program. It may end by itself, as where nobody needs it any
/// more.
pub async fn vital<F: Future>(name: &'static str, task: F) -> F::Output {
    let mut task = pin!(task);
    // Watched while it works and not while it rests: where another's panic takes the runtime down and tasks are dropped
    // on the way, theirs is not the fault.
    poll_fn(|context| {
        let _watch = Watch { name, may_end: true };
        task.as_mut().poll(context)
    })
    .await
}

/// The same of a task that may not end by itself either. Dropping it is no end.
pub async fn lasting<F: Future>(name: &'static str, task: F) {
    vital(name, task).await;
    end(name, "ended");
}

/// The same of a thread: what ends before [`Watch::release`] ends the program.
#[must_use = "what watches a thread is kept until the thread ends"]
#[derive(Debug)]
pub struct Watch {
    name: &'static str,
    may_end: bool,
}

impl Watch {
    /// Watches the thread that keeps this.
    pub const fn thread(name: &'static str) -> Self {
        Self { name, may_end: false }
    }

    /// The thread may end from here on.
    pub fn release(mut self) {
        self.may_end = true;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            end(self.name, "panicked");
        } else if !self.may_end {
            end(self.name, "ended");
        }
    }
}

/// What a lock protects. Where somebody panicked with it in hand, nobody can say what state it is in, and the program
/// ends.
pub fn locked<'a, T>(name: &'static str, lock: &'a Mutex<T>) -> MutexGuard<'a, T> {
    lock.lock().unwrap_or_else(|_| end(name, "was left as it was by a panic"))
}

fn end(name: &str, how: &str) -> ! {
    error!("the {name} {how}: this program is of no use without it and ends");
    std::process::exit(FATAL.into())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;

    use super::*;

    const CASE: &str = "WARREN_TEST_VITAL";

    /// The test runs itself again, as a program that ends in one of these ways.
    #[test]
    fn a_task_that_is_needed_takes_the_program_along_and_no_other_does() {
        if let Ok(case) = std::env::var(CASE) {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            return runtime.block_on(play(&case));
        }
        for (case, is_fatal) in [
            ("panics", true),
            ("ends", true),
            ("thread panics", true),
            ("thread ends", true),
            ("lock", true),
            ("is aborted", false),
            ("may end", false),
            ("thread is released", false),
            ("another panics", false),
            ("the runtime unwinds", false),
        ] {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "vital::tests::a_task_that_is_needed_takes_the_program_along_and_no_other_does"])
                .arg("--nocapture")
                .env(CASE, case)
                .output()
                .unwrap();
            let status = output.status.code();
            let log = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert_eq!(status == Some(FATAL.into()), is_fatal, "{case}: {status:?} {log}");
            assert_eq!(log.contains("the pump "), is_fatal, "{case}: {log}");
            assert!(is_fatal || output.status.success(), "{case}: {log}");
        }
    }

    #[allow(clippy::panic, reason = "what is tried is a panic")]
    async fn play(case: &str) {
        crate::log_to_stderr("info").unwrap();
        let doomed = || async { panic!("as a test wants it") };
        match case {
            "panics" => drop(tokio::spawn(vital("pump", doomed())).await),
            "ends" => drop(tokio::spawn(lasting("pump", async {})).await),
            "thread panics" => drop(
                std::thread::spawn(|| {
                    let _watch = Watch::thread("pump");
                    panic!("as a test wants it");
                })
                .join(),
            ),
            "thread ends" => drop(std::thread::spawn(|| drop(Watch::thread("pump"))).join()),
            "lock" => {
                let lock = Arc::new(Mutex::new(0));
                let held = Arc::clone(&lock);
                let holder = std::thread::spawn(move || {
                    let _guard = held.lock().unwrap();
                    panic!("as a test wants it");
                });
                drop(holder.join());
                drop(locked("pump", &lock));
            }
            "is aborted" => {
                let task = tokio::spawn(lasting("pump", std::future::pending::<()>()));
                task.abort();
                drop(task.await);
            }
            "may end" => drop(tokio::spawn(vital("pump", async {})).await),
            "thread is released" => drop(std::thread::spawn(|| Watch::thread("pump").release()).join()),
            "the runtime unwinds" => {
                let unwinds = std::thread::spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        tokio::spawn(lasting("pump", std::future::pending::<()>()));
                        tokio::task::yield_now().await;
                        panic!("as a test wants it");
                    });
                });
                drop(unwinds.join());
            }
            "another panics" => drop(tokio::spawn(doomed()).await),
            other => panic!("{other}"),
        }
    }
}
