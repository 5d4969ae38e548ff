//! The kernel's switches that let packets pass: whatever happens on the way, they end as they were.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use warren_core::plan::{Desired, Forwarding, ForwardingStep, ModelKernel, Step, Switch, diff, own};

use crate::world::{converge, small_world};

const LINKS: [&str; 4] = ["wan", "lan", "all", "default"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Wishes come and go, and whoever carries them out is killed at any step, several times.
    #[test]
    fn every_switch_is_given_back_as_it_was(start in kernel(), lives in vec((wish(), any::<Index>()), 1..6)) {
        let mut kernel = start.clone();
        for (wish, killed_after) in lives {
            let steps = diff(&wish, &kernel.state).steps;
            for step in &steps[..killed_after.index(steps.len() + 1)] {
                kernel.carry_out(step).unwrap();
            }
        }
        converge(&mut kernel, &Desired::default());
        prop_assert_eq!(values(&kernel), values(&start));
        prop_assert!(kernel.state.forwarding.before.is_empty(), "{:?}", kernel.state.forwarding.before);
    }

    /// One plan is enough, and no value is changed that is not written down before.
    #[test]
    fn nothing_is_changed_that_is_not_written_down(mut kernel in kernel(), wish in wish()) {
        let start = values(&kernel);
        for step in diff(&wish, &kernel.state).steps {
            kernel.carry_out(&step).unwrap();
        }
        prop_assert_eq!(diff(&wish, &kernel.state).to_string(), "");
        let all = Switch::Ipv6("all".to_owned());
        for (switch, value) in values(&kernel) {
            let before = kernel.state.forwarding.before.get(&switch);
            let is_set_along = matches!(switch, Switch::Ipv6(_)) && kernel.state.forwarding.before.contains_key(&all);
            let was = start[&switch];
            prop_assert!(value == was || before.is_some_and(|before| before.value == was) || is_set_along, "{}", switch);
        }
        // Routers are heard where they were before.
        for (switch, was) in &start {
            let Switch::AcceptRa(link) = switch else { continue };
            let hears = |value: u32, router: u32| value == 2 || (value == 1 && router == 0);
            let router = Switch::Ipv6(link.clone());
            let now = values(&kernel);
            let is_kept = !hears(*was, start[&router]) || hears(now[switch], now[&router]);
            prop_assert!(is_kept || link == "all", "{}", switch);
        }
    }

    #[test]
    fn what_somebody_else_has_set_since_stays(mut kernel in kernel(), wish in wish(), pick in any::<Index>(), value in 0_u32..4) {
        converge(&mut kernel, &wish);
        let single: Vec<Switch> =
            values(&kernel).into_keys().filter(|it| !matches!(it, Switch::Ipv6(link) if link != "all")).collect();
        let switch = pick.get(&single).clone();
        prop_assume!(value != switch.ours());
        kernel.state.forwarding.write(&switch, value);
        converge(&mut kernel, &Desired::default());
        prop_assert_eq!(values(&kernel)[&switch], value, "{}", switch);
    }
}

/// Another program has all links pass packets on (as Docker does): from then on that is its business.
#[test]
fn a_link_that_somebody_switched_on_with_all_others_stays_on() {
    let mut kernel = ModelKernel::default();
    for link in LINKS {
        kernel.state.forwarding.values.insert(Switch::Ipv4(link.to_owned()), 0);
    }
    converge(&mut kernel, &forwarding(&["lan"], &[]));
    kernel.state.forwarding.write(&Switch::Ipv4("all".to_owned()), 1);
    converge(&mut kernel, &Desired::default());
    assert!(values(&kernel).values().all(|value| *value == 1));
}

/// Where they cannot be written, nothing is tried in vain, and the command is told.
#[test]
fn what_is_closed_is_told_and_not_tried() {
    let mut found = kernel_with(false, &BTreeMap::new()).state.forwarding;
    found.is_closed = true;
    let wish = forwarding(&["lan"], &["lan"]);
    let kernel = ModelKernel::holding(warren_core::plan::Observed { forwarding: found.clone(), ..Default::default() });
    let plan = diff(&wish, &kernel.state);
    assert_eq!(plan.to_string(), "set net.ipv4.conf.lan.forwarding to 1\n");
    assert!(matches!(plan.steps.as_slice(), [Step::Forwarding(ForwardingStep::Set(_))]));
    let command = wish.forwarding.to_type(&found).unwrap();
    assert!(command.starts_with("sysctl -w ") && command.ends_with("net.ipv6.conf.all.forwarding=1"), "{command}");
    found.values.insert(Switch::Ipv6("all".to_owned()), 1);
    assert_eq!(wish.forwarding.to_type(&found), None);
}

/// Only the links to what is carried, and ours; the way out only where something leaves by it.
#[test]
fn the_links_that_lead_to_what_is_carried_are_switched_on() {
    let mut world = small_world();
    world.links = [("192.168.7.0/24", "lan"), ("192.168.9.0/24", "other"), ("0.0.0.0/0", "wan"), ("::/0", "wan")]
        .map(|(net, link)| (net.parse().unwrap(), BTreeSet::from([link.to_owned()])))
        .into();
    assert_eq!(world.wish().forwarding, Forwarding::default(), "nothing is offered");
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();

    world.prefs.advertise_routes = ["192.168.7.0/24"].map(|net| net.parse().unwrap()).into();
    assert_eq!(world.wish().forwarding, Forwarding { v4: names(&["lan", own::LINK]), v6: names(&[]) });
    world.approved.clear();
    assert_eq!(world.wish().forwarding, Forwarding::default(), "nothing is approved");

    // A part of what is carried lies behind the way out.
    world.prefs.advertise_routes = ["192.168.0.0/16"].map(|net| net.parse().unwrap()).into();
    world.approved = world.prefs.advertise_routes.clone();
    assert_eq!(world.wish().forwarding.v4, names(&["lan", "other", own::LINK, "wan"]));

    world.prefs.advertise_routes = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()).into();
    world.approved = world.prefs.advertise_routes.clone();
    let both = names(&[own::LINK, "wan"]);
    assert_eq!(world.wish().forwarding, Forwarding { v4: both.clone(), v6: both });
}

fn wish() -> impl Strategy<Value = Desired> {
    let links = || subsequence(vec!["wan", "lan", own::LINK], 0..=3);
    (links(), links()).prop_map(|(v4, v6)| forwarding(&v4, &v6))
}

fn forwarding(v4: &[&str], v6: &[&str]) -> Desired {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Desired { forwarding: Forwarding { v4: names(v4), v6: names(v6) }, ..Desired::default() }
}

/// Newer and older kernels, whatever their switches are.
fn kernel() -> impl Strategy<Value = ModelKernel> {
    let values = btree_map((select(LINKS.to_vec()), 0_usize..4), 0_u32..3, 0..12);
    (any::<bool>(), values).prop_map(|(is_new, values)| kernel_with(is_new, &values))
}

fn kernel_with(is_new: bool, values: &BTreeMap<(&str, usize), u32>) -> ModelKernel {
    let mut kernel = ModelKernel::default();
    let kinds = [Switch::Ipv4, Switch::Ipv6Forced, Switch::Ipv6, Switch::AcceptRa];
    for link in LINKS {
        for (place, kind) in kinds.into_iter().enumerate().filter(|(place, _)| is_new || *place != 1) {
            let value = values.get(&(link, place)).copied().unwrap_or(u32::from(place == 3));
            // Of those that let packets pass, any number is "on".
            let value = if place == 3 { value } else { value.min(1) };
            kernel.state.forwarding.values.insert(kind(link.to_owned()), value);
        }
    }
    kernel
}

/// But for those of our link, which go with it.
fn values(kernel: &ModelKernel) -> BTreeMap<Switch, u32> {
    let values = &kernel.state.forwarding.values;
    values
        .iter()
        .filter(|(switch, _)| switch.link() != own::LINK)
        .map(|(switch, value)| (switch.clone(), *value))
        .collect()
}
