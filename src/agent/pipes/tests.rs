use std::process::Command;

use super::*;
use crate::io::FATAL;
use crate::plan::Step;

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

    async fn way(&mut self, _: std::net::IpAddr, _: bool) -> Result<crate::plan::Way, KernelError> {
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
            to_kernel.actions.send(Action::Observe).await.unwrap();
            news.recv().await;
        });
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "agent::pipes::tests::a_pipe_to_the_kernel_that_panics_takes_the_program_along"])
        .env(CASE, "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(FATAL.into()), "{output:?}");
}
