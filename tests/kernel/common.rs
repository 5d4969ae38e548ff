//! A network namespace for each test, and the system's own tools to ask what is true in it.

use std::future::Future;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use warren::linux::LinuxKernel;
use warren::plan::{Kernel, Observed, Step};
use warren::types::{IpNet, NodePrivate, NodePublic};

/// What a test asks of the machine it runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Root, and the `ip` and `nft` programs.
    Namespace,
    /// WireGuard in the kernel and the `wg` program as well.
    WireGuard,
}

/// How long anything that should happen may take: far longer than it does under emulation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the test in a network namespace of its own, where the loopback is up and nothing else is.
pub(crate) fn in_namespace<F: Future<Output = ()>>(needs: Needs, test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(missing) = enter_namespace(needs) {
            assert!(std::env::var_os("WARREN_REQUIRE_KERNEL").is_none(), "{missing}");
            println!("skipped: {missing}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(PATIENCE * 10, test()).await.unwrap() });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn enter_namespace(needs: Needs) -> Result<(), String> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).map_err(|error| format!("no new namespace: {error}"))?;
    sh("ip link set lo up");
    if needs == Needs::WireGuard {
        let probe = run("ip link add probe type wireguard && ip link del probe");
        if !probe.status.success() {
            return Err("this kernel has no WireGuard".to_owned());
        }
    }
    Ok(())
}

/// Runs a shell command in the test's namespace and returns what it printed; it must succeed.
pub(crate) fn sh(command: &str) -> String {
    let output = run(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The same, read as JSON. A list that is empty prints as nothing at all.
pub(crate) fn json(command: &str) -> Value {
    let text = sh(command);
    if text.trim().is_empty() { Value::Array(Vec::new()) } else { serde_json::from_str(&text).unwrap() }
}

/// Runs a shell command that may fail.
pub(crate) fn run(command: &str) -> Output {
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new("sh").arg("-c").arg(command).env("PATH", format!("{path}:/usr/sbin:/sbin")).output().unwrap()
}

/// Applies steps that must all succeed.
pub(crate) async fn apply(kernel: &mut LinuxKernel, steps: impl IntoIterator<Item = Step>) {
    for step in steps {
        if let Err(error) = kernel.apply(&step).await {
            panic!("{step:?}: {error}");
        }
    }
}

/// What is there now; it must be readable.
pub(crate) async fn observe(kernel: &mut LinuxKernel) -> Observed {
    kernel.observe().await.unwrap()
}

/// A kernel whose link exists, is up and has a key.
pub(crate) async fn kernel_with_link() -> LinuxKernel {
    let mut kernel = LinuxKernel::new().unwrap();
    let steps = [Step::CreateLink, Step::SetPrivateKey(private(1)), Step::SetListenPort(41741), Step::SetLinkUp];
    apply(&mut kernel, steps).await;
    kernel
}

pub(crate) fn private(number: u8) -> NodePrivate {
    NodePrivate::from_random([number; 32])
}

/// A key that differs for every number.
pub(crate) fn public(number: u32) -> NodePublic {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    NodePublic::from_bytes(bytes)
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn nets<C: FromIterator<IpNet>>(texts: &[&str]) -> C {
    texts.iter().map(|text| net(text)).collect()
}
