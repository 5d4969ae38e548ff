//! A network namespace for each test, and the system's own tools to ask what is true in it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use warren_core::plan::{
    Admit, Class, ClassId, Desired, DesiredEndpoint, Device, DeviceStep, Firewall, Kernel, LinkStep, Observed,
    PeerConfig, PortRange, Probes, Protocol, Route, RouteTarget, Rule, RuleAction, RuleId, RulePackets, Step, diff,
    own,
};
use warren_core::types::{IpNet, NodePrivate, NodePublic};
use warren_linux::LinuxKernel;

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

/// Set for a test that is run again inside another's namespace: it stays where it is.
pub(crate) const STAY: &str = "WARREN_KERNEL_STAY";

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
    if std::env::var_os(STAY).is_some() {
        return Ok(());
    }
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
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command}: {err}{out}");
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

/// A kernel whose table others may change, so that tests can be those others.
pub(crate) fn sharing() -> LinuxKernel {
    LinuxKernel::new().unwrap().share_table()
}

/// How many times longer things may take here: software that plays a processor is at least so much slower.
pub(crate) fn slowness() -> u32 {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if processor.contains("QEMU") || processor.contains("TCG") { 20 } else { 1 }
}

/// What is there now; it must be readable.
pub(crate) async fn observe(kernel: &mut LinuxKernel) -> Observed {
    let mut observed = kernel.observe().await.unwrap();
    // What the host's switches are is no object of ours.
    observed.forwarding.values.clear();
    observed
}

/// A kernel whose link exists, is up and has a key.
pub(crate) async fn kernel_with_link() -> LinuxKernel {
    let mut kernel = LinuxKernel::new().unwrap();
    let steps = [
        Step::Link(LinkStep::Create),
        Step::Device(DeviceStep::SetPrivateKey(private(1))),
        Step::Device(DeviceStep::SetListenPort(41741)),
        Step::Link(LinkStep::SetUp),
    ];
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

/// Steps from what is there to what is wished, applied until nothing is left to do; the steps that were.
pub(crate) async fn converge(kernel: &mut LinuxKernel, wish: &Desired) -> Vec<Step> {
    let mut applied = Vec::new();
    for _ in 0..4 {
        let plan = diff(wish, &kernel.observe().await.unwrap());
        if plan.is_empty() {
            return applied;
        }
        apply(kernel, plan.steps.clone()).await;
        applied.extend(plan.steps);
    }
    panic!("still not there after {applied:?}");
}

/// A wish with something of every kind in it.
pub(crate) fn wish() -> Desired {
    let admits = BTreeSet::from([Admit {
        destination: net("100.64.0.1/32"),
        protocol: Protocol::TCP,
        ports: PortRange { first: 80, last: 80 },
    }]);
    let firewall = Firewall {
        served: nets(&["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]),
        tunnelled: nets(&["100.64.0.0/10", "fd7a:115c:a1e0::/48", "10.2.0.0/16"]),
        classes: BTreeMap::from([(ClassId(1), Class { rules: BTreeMap::from([(RuleId(1), admits)]) })]),
        hosts: BTreeMap::from([("100.64.0.2".parse().unwrap(), ClassId(1))]),
        subnets: BTreeMap::from([(net("10.2.0.0/16"), ClassId(1))]),
        probes: Some(Probes { wireguard_port: 41741, probe_port: 41743, relay_port: 41742 }),
        resolver_port: Some(own::RESOLVER_PORT),
        ..Firewall::default()
    };
    let peer = |ips: &[&str], endpoint| Arc::new(PeerConfig { allowed_ips: nets(ips), endpoint, keepalive: 0 });
    let endpoint = DesiredEndpoint::Initial("192.0.2.2:41741".parse().unwrap());
    let route = |destination: &str, target, metric| Route { destination: net(destination), target, metric };
    let packets = RulePackets::NotMarked { mark: own::MARK_BYPASS, mask: u32::MAX };
    let rule = |ipv6| Rule { priority: own::RULE_OVERLAY, ipv6, packets, action: RuleAction::Ours };
    Desired {
        device: Some(Device {
            private_key: private(1),
            listen_port: 41741,
            fwmark: own::MARK_BYPASS,
            mtu: 1280,
            addresses: nets(&[
                "100.64.0.1/32",
                "100.100.100.100/32",
                "fd7a:115c:a1e0::1/128",
                "fd7a:115c:a1e0::53/128",
            ]),
            peers: BTreeMap::from([
                (public(1), peer(&["100.64.0.2/32", "fd7a:115c:a1e0::2/128", "10.2.0.0/16"], endpoint)),
                (public(2), peer(&["100.64.0.3/32"], DesiredEndpoint::Leave)),
            ]),
        }),
        routes: BTreeSet::from([
            route("100.64.0.0/10", RouteTarget::Tunnel, 100),
            route("100.64.0.0/10", RouteTarget::Unreachable, 10_000),
            route("fd7a:115c:a1e0::/48", RouteTarget::Tunnel, 100),
            route("fd7a:115c:a1e0::/48", RouteTarget::Unreachable, 10_000),
            route("10.2.0.0/16", RouteTarget::Tunnel, 100),
            route("100.64.9.0/24", RouteTarget::Throw, 100),
            route("fd7a:115c:a1e0:9::/64", RouteTarget::Throw, 100),
        ]),
        rules: BTreeSet::from([false, true].map(rule)),
        firewall: Some(Arc::new(firewall)),
        ..Desired::default()
    }
}
