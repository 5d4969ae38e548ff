//! The reconciler among failures, crashes and other people's commands. Time is a number here.

#![allow(clippy::disallowed_methods, reason = "one reading of the clock is the origin of simulated time")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use warren_core::plan::{
    Ability, Desired, KernelAction, KernelError, ModelKernel, ObservedFirewall, ObservedLink, PeerStep, Reconciler,
    ReconcilerEvent, Route, RouteStep, RouteTarget, RuleStep, Step, diff,
};
use warren_core::types::{IpNet, NodePublic};

use crate::world::{Command, World, command, public_key, small_world, world};

/// A reconciler, its kernel, and time that passes when it is told to.
struct Host {
    kernel: ModelKernel,
    reconciler: Reconciler,
    now: Instant,
    events: Vec<ReconcilerEvent>,
    applied: Vec<Step>,
    /// Steps that the kernel refuses, by what they display.
    refused: BTreeSet<String>,
}

impl Host {
    fn new(wish: &Desired) -> Self {
        let mut host = Self {
            kernel: ModelKernel::default(),
            reconciler: Reconciler::new(),
            now: Instant::now(),
            events: Vec::new(),
            applied: Vec::new(),
            refused: BTreeSet::new(),
        };
        host.wish(wish);
        host
    }

    /// A reconciler that has settled on this wish.
    fn settled(wish: &Desired) -> Self {
        let mut host = Self::new(wish);
        host.run(Duration::ZERO);
        assert!(host.reconciler.is_settled());
        host.events.clear();
        host.applied.clear();
        host
    }

    fn wish(&mut self, wish: &Desired) {
        self.reconciler.handle_desired(wish.clone(), self.now);
    }

    /// Somebody else's command, and the notice of it.
    fn command(&mut self, command: &Command) {
        command.run(&mut self.kernel);
        self.reconciler.handle_changed(self.now);
    }

    /// Lets the agent die and start again, without touching the kernel.
    fn restart(&mut self, wish: &Desired) {
        self.reconciler = Reconciler::new();
        self.wish(wish);
    }

    /// Does what is asked for, as long as it asks for anything within this time.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.reconciler.handle_timeout(self.now);
            while self.act() {}
            match self.reconciler.poll_timeout() {
                Some(at) if at <= until => self.now = self.now.max(at),
                _ => break,
            }
        }
        self.now = until;
    }

    /// Does one thing, if one is asked for.
    fn act(&mut self) -> bool {
        let action = self.reconciler.poll_action();
        match &action {
            None => {}
            Some(KernelAction::Observe) => self.reconciler.handle_observed(Ok(self.kernel.state.clone()), self.now),
            Some(KernelAction::Apply(steps)) => {
                let carry_out = |step: &Step| match self.refused.contains(&step.to_string()) {
                    true => Err(KernelError { operation: step.to_string(), reason: "refused".to_owned() }),
                    false => self.kernel.carry_out(step),
                };
                let results: Vec<_> = steps.iter().map(carry_out).collect();
                self.applied.extend(steps.iter().cloned());
                let changed = results.iter().any(Result::is_ok);
                self.reconciler.handle_steps(results, self.now);
                if changed {
                    // The kernel tells of our own changes as of anybody's.
                    self.reconciler.handle_changed(self.now);
                }
            }
        }
        self.events.extend(std::iter::from_fn(|| self.reconciler.poll_event()));
        action.is_some()
    }

    fn troubles(&self) -> Vec<String> {
        self.reconciler.troubles(self.now).iter().map(ToString::to_string).collect()
    }

    fn left_to_do(&self) -> String {
        self.reconciler.desired().map(|wish| diff(wish, &self.kernel.state).to_string()).unwrap_or_default()
    }
}

const TWO_SECONDS: Duration = Duration::from_secs(2);

#[test]
fn what_somebody_removes_is_back_within_two_seconds_and_named() {
    let wish = small_world().wish();
    let peer = format!("peer {}", public_key(1).short());
    for (command, named) in [
        (Command::RemovePeer(1), peer.as_str()),
        (Command::FlushRoutes, "route 10.1.2.0/24"),
        (Command::FlushRules, "rule 5310 (IPv4)"),
        (Command::DeleteTable, "table inet warren"),
        (Command::AlterTable, "table inet warren"),
        (Command::DeleteLink, "link warren0"),
        (Command::LinkDown, "link warren0"),
    ] {
        let mut host = Host::settled(&wish);
        host.command(&command);
        host.run(TWO_SECONDS);
        assert_eq!(host.left_to_do(), "", "{command:?}");
        let told = format!("another program removed or changed {named}; it was put back");
        assert!(host.troubles().contains(&told), "{command:?}: {:?}", host.troubles());
    }
}

#[test]
fn a_deleted_link_is_named_alone() {
    let mut host = Host::settled(&small_world().wish());
    host.command(&Command::DeleteLink);
    host.run(TWO_SECONDS);
    assert_eq!(host.troubles(), ["another program removed or changed link warren0; it was put back"]);
}

#[test]
fn a_repair_is_told_of_for_ten_minutes() {
    let mut host = Host::settled(&small_world().wish());
    host.command(&Command::RemovePeer(1));
    host.run(Duration::from_secs(590));
    assert_eq!(host.troubles().len(), 1);
    host.run(Duration::from_secs(20));
    assert_eq!(host.troubles(), [""; 0]);
}

#[test]
fn a_change_that_no_notice_tells_of_is_found_by_the_slow_look() {
    let mut host = Host::settled(&small_world().wish());
    Command::RemovePeer(1).run(&mut host.kernel);
    host.run(Duration::from_secs(61));
    assert_eq!(host.left_to_do(), "");
}

#[test]
fn a_program_that_undoes_every_repair_is_met_slowly_and_named() {
    let mut host = Host::settled(&small_world().wish());
    for _ in 0..6_000 {
        if !host.kernel.state.rules.is_empty() {
            host.command(&Command::FlushRules);
        }
        host.run(Duration::from_millis(10));
    }
    let repairs = host.applied.iter().filter(|step| matches!(step, Step::Rule(RuleStep::Add(_)))).count() / 2;
    assert!((5..=20).contains(&repairs), "{repairs} repairs in a minute");
    let troubles = host.troubles();
    assert!(troubles.iter().any(|trouble| trouble.contains("keeps removing or changing rule 5310")), "{troubles:?}");
}

#[test]
fn a_peer_that_the_kernel_refuses_does_not_stop_the_others() {
    let wish = small_world().wish();
    let mut host = Host::new(&wish);
    let refused =
        diff(&wish, &host.kernel.state).steps.into_iter().find(|step| matches!(step, Step::Peer(_, PeerStep::Add(_))));
    let refused = refused.unwrap().to_string();
    host.refused.insert(refused.clone());
    host.run(Duration::from_secs(600));
    assert_eq!(host.left_to_do(), format!("{refused}\n"));
    assert_eq!(host.troubles().len(), 1);
    assert!(host.troubles()[0].starts_with(&format!("could not {refused}: ")), "{:?}", host.troubles());
    let tries = host.applied.iter().filter(|step| step.to_string() == refused).count();
    assert!((5..30).contains(&tries), "{tries} tries in ten minutes");

    host.refused.clear();
    host.run(Duration::from_secs(61));
    assert_eq!((host.left_to_do().as_str(), host.troubles().len()), ("", 0));
}

#[test]
fn ten_thousand_peers_are_a_few_actions_and_one_that_is_refused_is_named() {
    let mut wish = small_world().wish();
    let peers = &mut wish.device.as_mut().unwrap().peers;
    peers.extend((0..10_000_u32).map(|number| {
        // No two look alike where only the first few characters are shown.
        let bytes: [u8; 4] = number.wrapping_mul(0x9e37_79b9).to_be_bytes();
        (NodePublic::from_bytes(bytes.repeat(8).try_into().unwrap()), Arc::default())
    }));
    let mut host = Host::new(&wish);
    let plan = diff(&wish, &host.kernel.state).steps;
    let adds: Vec<String> =
        plan.iter().filter(|s| matches!(s, Step::Peer(_, PeerStep::Add(_)))).map(Step::to_string).collect();
    let refused = adds[700].clone();
    host.refused.insert(refused.clone());

    host.reconciler.handle_timeout(host.now);
    let actions = std::iter::from_fn(|| host.act().then_some(())).count();

    assert!(actions < 60, "{actions} actions");
    assert_eq!(host.applied, plan, "in the plan's order, and none is left out");
    assert_eq!(host.kernel.state.device.as_ref().unwrap().peers.len(), wish.device.unwrap().peers.len() - 1);
    assert!(host.troubles()[0].starts_with(&format!("could not {refused}: ")), "{:?}", host.troubles());
}

#[test]
fn an_ability_that_is_missing_takes_only_itself_away_and_is_used_once_it_is_there() {
    let mut wish = small_world().wish();
    Arc::make_mut(wish.firewall.as_mut().unwrap()).options.log_denied = Some(7);
    for ability in Ability::ALL {
        let mut host = Host::new(&wish);
        host.kernel.lose(ability);
        host.run(TWO_SECONDS);
        assert!(host.reconciler.is_settled(), "{ability:?}: {}", host.left_to_do());
        assert_eq!(host.troubles(), [""; 0], "{ability:?}");
        let state = &host.kernel.state;
        assert_eq!(state.device.as_ref().unwrap().peers.len(), 2, "{ability:?}");
        let ipv4 = |net: &IpNet| matches!(net, IpNet::V4(_));
        assert!(state.link.as_ref().unwrap().addresses.iter().any(ipv4), "{ability:?}");
        let leads = |route: &Route| ipv4(&route.destination) && route.target == RouteTarget::Tunnel;
        assert!(state.routes.iter().any(leads) && state.rules.iter().any(|rule| !rule.ipv6), "{ability:?}");
        assert!(matches!(state.firewall, ObservedFirewall::Table(_)), "{ability:?}");

        host.kernel.state.lacking.clear();
        host.reconciler.handle_changed(host.now);
        host.run(TWO_SECONDS);
        assert_eq!(diff(&wish, &host.kernel.state).to_string(), "", "{ability:?}");
        assert_eq!(host.kernel.state.link.unwrap().addresses, wish.device.as_ref().unwrap().addresses);
    }
}

#[test]
fn what_nothing_else_depends_on_does_not_keep_the_rest_from_working() {
    let wish = small_world().wish();
    for (refused, works) in [
        ("add peer", true),
        ("add address fd7a", true),
        ("add route 10.1.2.0/24", true),
        ("replace table", false),
        ("bring", false),
    ] {
        let mut host = Host::new(&wish);
        let steps = diff(&wish, &host.kernel.state).steps.into_iter().map(|step| step.to_string());
        host.refused.extend(steps.filter(|step| step.starts_with(refused)));
        assert!(!host.refused.is_empty());
        host.run(TWO_SECONDS);
        assert!(!host.reconciler.is_settled());
        assert_eq!(host.reconciler.works(), works, "{refused}");
    }
}

#[test]
fn without_the_firewall_no_peer_is_set_up() {
    let wish = small_world().wish();
    let mut host = Host::new(&wish);
    let firewall = diff(&wish, &host.kernel.state).steps.into_iter();
    host.refused.extend(firewall.filter(|step| step.object().contains("table")).map(|step| step.to_string()));
    host.run(Duration::from_secs(600));
    assert!(host.kernel.state.device.unwrap().peers.is_empty());
}

#[test]
fn a_link_that_cannot_be_deleted_keeps_its_firewall() {
    let mut host = Host::settled(&small_world().wish());
    host.refused.insert("delete link warren0".to_owned());
    host.wish(&Desired::default());
    host.run(Duration::from_secs(600));
    assert!(matches!(host.kernel.state.firewall, ObservedFirewall::Table(_)));
}

#[test]
fn a_foreign_link_of_our_name_is_left_alone_and_told_of() {
    let mut host = Host::new(&small_world().wish());
    host.kernel.state.link = Some(ObservedLink { index: 3, ..ObservedLink::default() });
    host.run(Duration::from_secs(600));
    assert!(host.applied.is_empty(), "{:?}", host.applied);
    assert!(host.troubles()[0].contains("not WireGuard"), "{:?}", host.troubles());

    host.kernel.state.link = None;
    host.reconciler.handle_changed(host.now);
    host.run(TWO_SECONDS);
    assert_eq!((host.left_to_do().as_str(), host.troubles().len()), ("", 0));
}

#[test]
fn a_kernel_that_forgets_what_it_took_is_not_asked_without_end() {
    let mut host = Host::new(&small_world().wish());
    for _ in 0..10_000 {
        host.act();
        host.kernel.state.routes.clear();
        host.reconciler.handle_timeout(host.now);
    }
    assert!(host.applied.len() < 100, "{} steps", host.applied.len());
    assert!(host.troubles()[0].contains("still to do"), "{:?}", host.troubles());
}

#[test]
fn a_new_wish_ends_the_plan_for_the_old_one_at_the_next_step() {
    let mut host = Host::new(&small_world().wish());
    host.reconciler.handle_timeout(host.now);
    for _ in 0..4 {
        host.act();
    }
    host.wish(&Desired::default());
    host.run(Duration::ZERO);
    assert_eq!(host.kernel.state, ModelKernel::default().state);
    assert!(!host.applied.iter().any(|step| matches!(step, Step::Peer(_, PeerStep::Add(_)))));
}

#[test]
fn a_start_on_a_kernel_that_is_as_wished_changes_nothing() {
    let wish = small_world().wish();
    let mut host = Host::settled(&wish);
    host.restart(&wish);
    host.run(Duration::from_secs(600));
    assert!(host.applied.is_empty());
    assert_eq!(host.events, [ReconcilerEvent::Converged]);
    assert_eq!(host.troubles(), [""; 0]);
}

#[test]
fn a_kill_at_any_step_is_made_good_by_the_next_start() {
    let wish = small_world().wish();
    let steps = diff(&wish, &ModelKernel::default().state).steps.len();
    for kill_after in 0..=steps {
        let mut host = Host::new(&wish);
        host.reconciler.handle_timeout(host.now);
        for _ in 0..=kill_after {
            host.act();
        }
        host.restart(&wish);
        host.run(Duration::ZERO);
        assert_eq!(host.left_to_do(), "", "killed after {kill_after} steps");
    }
}

/// What may happen to a host.
#[derive(Clone, Debug)]
enum Happening {
    Command(Command),
    Wish(usize),
    Restart,
    /// The next step of the plan fails if it is of this number.
    Refuse(prop::sample::Index),
    Heal,
    Pass(u16),
    /// Only so many actions are taken before the next thing happens.
    Act(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => command().prop_map(Happening::Command),
        3 => (0_usize..3).prop_map(Happening::Wish),
        1 => Just(Happening::Restart),
        2 => any::<prop::sample::Index>().prop_map(Happening::Refuse),
        1 => Just(Happening::Heal),
        2 => (0_u16..5_000).prop_map(Happening::Pass),
        3 => (0_u8..12).prop_map(Happening::Act),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever happened: once it stops, everything is as wished within the longest retry.
    #[test]
    fn when_the_trouble_ends_everything_is_as_wished(
        worlds in vec(world(), 3),
        happenings in vec(happening(), 0..40),
    ) {
        let wishes: Vec<Desired> = worlds.iter().map(World::wish).collect();
        let mut host = Host::new(&wishes[0]);
        let mut current = 0;
        for happening in happenings {
            match happening {
                Happening::Command(command) => host.command(&command),
                Happening::Wish(index) => {
                    current = index;
                    host.wish(&wishes[index]);
                }
                Happening::Restart => host.restart(&wishes[current]),
                Happening::Refuse(index) => {
                    let steps = diff(&wishes[current], &host.kernel.state).steps;
                    host.refused.extend((!steps.is_empty()).then(|| index.get(&steps).to_string()));
                }
                Happening::Heal => host.refused.clear(),
                Happening::Pass(milliseconds) => host.run(Duration::from_millis(milliseconds.into())),
                Happening::Act(times) => {
                    host.reconciler.handle_timeout(host.now);
                    for _ in 0..times {
                        host.act();
                    }
                }
            }
            let steps_a_second = host.applied.len();
            prop_assert!(steps_a_second < 4_000, "{} steps", steps_a_second);
        }
        host.refused.clear();
        host.run(Duration::from_secs(130));
        prop_assert_eq!(host.left_to_do(), "");
        prop_assert!(host.reconciler.is_settled());
    }
}

#[test]
fn an_unreachable_route_is_there_before_the_rules_and_after_them() {
    let wish = small_world().wish();
    let up = diff(&wish, &ModelKernel::default().state).steps;
    let refuses = |step: &Step| matches!(step, Step::Route(RouteStep::Add(route) | RouteStep::Remove(route)) if route.target == RouteTarget::Unreachable);
    let is_rule = |step: &Step| matches!(step, Step::Rule(_));
    assert!(up.iter().position(refuses).unwrap() < up.iter().position(is_rule).unwrap());
    let host = Host::settled(&wish);
    let down = diff(&Desired::default(), &host.kernel.state).steps;
    assert!(down.iter().rposition(refuses).unwrap() > down.iter().rposition(is_rule).unwrap());
}
