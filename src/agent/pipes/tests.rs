use std::process::Command;
use std::sync::Mutex;

use super::*;
use warren_core::plan::Step;
use warren_shell::FATAL;

/// A kernel whose answer nobody foresaw.
struct Panicking;

#[allow(clippy::panic, reason = "what is tried is a panic")]
impl Kernel for Panicking {
    async fn observe(&mut self) -> Result<Observed, KernelError> {
        panic!("as a test wants it")
    }

    async fn apply(&mut self, _: &Step) -> Result<(), KernelError> {
        Ok(())
    }

    async fn figures(&mut self) -> Result<Figures, KernelError> {
        panic!("as a test wants it")
    }

    async fn look_up(&mut self, _: std::net::IpAddr, _: bool) -> Result<warren_core::plan::RouteLookup, KernelError> {
        std::future::pending().await
    }

    async fn changed(&mut self) -> Result<Change, KernelError> {
        std::future::pending().await
    }
}

/// The test runs itself again, as an agent.
#[test]
fn a_pipe_to_the_kernel_that_panics_takes_the_program_along() {
    const CASE: &str = "WARREN_TEST_PIPE";
    if std::env::var_os(CASE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (to_kernel, mut news) = kernel(Panicking);
            to_kernel.actions.send(KernelAction::Observe).await.unwrap();
            news.recv().await;
        });
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pipes::tests::a_pipe_to_the_kernel_that_panics_takes_the_program_along"])
        .env(CASE, "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(FATAL.into()), "{output:?}");
}

#[tokio::test]
async fn what_the_host_says_of_itself_is_told_once_and_again_when_it_changes() {
    let named = |name: &str| Hostinfo { hostname: name.to_owned(), ..Hostinfo::default() };
    let now = Arc::new(Mutex::new((named("localhost"), 0)));
    let shared = Arc::clone(&now);
    let read = move || {
        let mut now = shared.lock().unwrap();
        now.1 += 1;
        now.0.clone()
    };
    let mut host = host(read, Duration::from_millis(1));
    assert_eq!(host.recv().await, Some(named("localhost")));

    now.lock().unwrap().0 = named("web");
    assert_eq!(host.recv().await, Some(named("web")));
    let before = now.lock().unwrap().1;
    while now.lock().unwrap().1 < before + 3 {
        tokio::task::yield_now().await;
    }
    assert!(host.try_recv().is_err(), "nothing has changed");
}
