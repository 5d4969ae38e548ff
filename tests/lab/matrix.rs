//! Any two machines reach each other: agents on every kind of site, each with each.
//!
//! In each cell a ping train starts from the left site to the right one, between two agents that had nothing to
//! say to each other before. The first packet goes through the relay; the path becomes direct where theory says so
//! ([`expected`]) and stays at the relay elsewhere; no packet is lost. `WARREN_MATRIX=all` runs all cells, and
//! `WARREN_MATRIX=easy-nat/hard-nat,open/open` these; without it, one of each row and column runs.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::lab::{PATIENCE, say, side_by_side, try_within};
use crate::nat::Kind;
use crate::theory::{Way, expected, reason};
use crate::train::{Account, History, PathWatch, Train, is_relay, now, which};
use crate::world::{Node, World};

/// How long the first answer may take.
const TO_ANSWER: Duration = Duration::from_secs(30);
/// How long the way to a direct path may be, under emulation on a busy machine.
const TO_DIRECT: Duration = Duration::from_secs(30);
/// How long a relayed train is watched: long enough for discovery to have tried all it tries, more than once.
const AT_RELAY: Duration = Duration::from_secs(12);
/// Answers that a train goes on for once it has arrived where it belongs.
const AFTERWARDS: usize = 15;

/// One of each row and column, both ways among them.
const SAMPLE: [(Kind, Kind); 8] = [
    (Kind::Open, Kind::HardNat),
    (Kind::EasyNat, Kind::DoubleNat),
    (Kind::HardNat, Kind::Open),
    (Kind::UdpBlocked, Kind::EasyNat),
    (Kind::DoubleNat, Kind::Firewall),
    (Kind::Firewall, Kind::DualStack),
    (Kind::V6Only, Kind::V6Only),
    (Kind::DualStack, Kind::UdpBlocked),
];

#[test]
fn any_two_sites_reach_each_other_directly_or_by_relay_as_theory_says() {
    let cells = wanted();
    let Some(mut world) = World::new() else { return };
    let started = now();
    let rows: BTreeSet<Kind> = cells.iter().map(|cell| cell.0).collect();
    let columns: BTreeSet<Kind> = cells.iter().map(|cell| cell.1).collect();
    let lefts = rows.iter().map(|kind| (format!("l-{}", kind.name()), *kind));
    let rights = columns.iter().map(|kind| (format!("r-{}", kind.name()), *kind));
    let mut lefts = world.nodes(&lefts.chain(rights).collect::<Vec<_>>());
    let rights = lefts.split_off(rows.len());
    say(&format!("matrix: {} agents joined within {:.0?}", lefts.len() + rights.len(), started.elapsed()));

    let outcomes = run_all(rounds(&cells), &lefts, &rights);

    report(&outcomes, &lefts, &rights);
    let right = outcomes.iter().filter(|outcome| outcome.fault.is_none()).count();
    say(&format!("matrix: {right} of {} cells as expected", cells.len()));
    assert_eq!(right, cells.len());
}

/// What became of one cell.
struct Outcome {
    cell: (Kind, Kind),
    way: Way,
    to_direct: Option<Duration>,
    changes: [usize; 2],
    account: Account,
    fault: Option<String>,
}

fn wanted() -> Vec<(Kind, Kind)> {
    let named = |name: &str| {
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        found.unwrap_or_else(|| panic!("WARREN_MATRIX: no kind {name}; there are {:?}", Kind::ALL.map(Kind::name)))
    };
    match std::env::var("WARREN_MATRIX").unwrap_or_default().as_str() {
        "" => SAMPLE.to_vec(),
        "all" => Kind::ALL.into_iter().flat_map(|left| Kind::ALL.map(|right| (left, right))).collect(),
        list => list
            .split(',')
            .map(|cell| {
                let (left, right) = cell.split_once('/').expect("WARREN_MATRIX: LEFT/RIGHT, parted by commas");
                (named(left), named(right))
            })
            .collect(),
    }
}

/// The cells in groups in which no site occurs twice.
fn rounds(cells: &[(Kind, Kind)]) -> Vec<Vec<(Kind, Kind)>> {
    let mut rounds: Vec<Vec<(Kind, Kind)>> = Vec::new();
    for cell in cells {
        let free = |round: &&mut Vec<(Kind, Kind)>| round.iter().all(|other| other.0 != cell.0 && other.1 != cell.1);
        match rounds.iter_mut().find(free) {
            Some(round) => round.push(*cell),
            None => rounds.push(vec![*cell]),
        }
    }
    rounds
}

fn run_all(rounds: Vec<Vec<(Kind, Kind)>>, lefts: &[Node], rights: &[Node]) -> Vec<Outcome> {
    let at = |nodes: &[Node], kind| nodes.iter().position(|node| node.kind == kind).unwrap();
    let run = |cell: (Kind, Kind)| {
        let outcome = run(cell, &lefts[at(lefts, cell.0)], &rights[at(rights, cell.1)]);
        say(&outcome.line());
        outcome
    };
    let mut outcomes: Vec<_> = rounds.into_iter().flat_map(|round| side_by_side(round, run)).collect();
    outcomes.sort_by_key(|outcome| outcome.cell);
    outcomes
}

fn run(cell: (Kind, Kind), left: &Node, right: &Node) -> Outcome {
    let watches = [PathWatch::start(left.host(), &right.ip), PathWatch::start(right.host(), &left.ip)];
    let started = now();
    let train = Train::start(left.host(), &right.ip, TO_ANSWER);

    let answered = train.try_run_on(1, TO_ANSWER);
    let direct = || watches.iter().all(PathWatch::is_direct).then_some(());
    let limit = if expected(cell.0, cell.1) == Way::Direct { TO_DIRECT } else { AT_RELAY };
    let way = if answered && try_within(limit, direct).is_some() { Way::Direct } else { Way::Relay };
    let _ = answered && train.try_run_on(AFTERWARDS, PATIENCE);

    let histories = watches.each_ref().map(PathWatch::history);
    let to_direct = (way == Way::Direct).then(|| histories.iter().map(|h| direct_since(h, started)).max()).flatten();
    let changes = histories.each_ref().map(|history| history.len() - 1);
    let mut outcome = Outcome { cell, way, to_direct, changes, account: train.finish(), fault: None };
    outcome.fault = outcome.judge(histories.iter().all(starts_at_relay), direct().is_some());
    outcome
}

/// When the last move to a direct path was seen, after the train had started.
fn direct_since(history: &History, started: Instant) -> Duration {
    let direct = |endpoint: Option<SocketAddr>| endpoint.is_some_and(|endpoint| !is_relay(endpoint));
    let first = history.iter().find(|(_, endpoint)| direct(*endpoint));
    first.map_or(Duration::ZERO, |(at, _)| at.saturating_duration_since(started))
}

fn starts_at_relay(history: &History) -> bool {
    history.first().is_some_and(|(_, endpoint)| endpoint.is_some_and(is_relay))
}

impl Outcome {
    /// What is wrong with it, if anything is.
    fn judge(&self, began_at_relay: bool, direct_at_end: bool) -> Option<String> {
        let (left, right) = self.cell;
        let expected = expected(left, right);
        if self.account.sent == 0 {
            return Some("no packet was answered".to_owned());
        }
        if !began_at_relay {
            return Some("an idle peer's packets do not go to the relay".to_owned());
        }
        if self.way != expected {
            let reason = format!("{}: {}; {}: {}", left.name(), reason(left), right.name(), reason(right));
            return Some(format!("theory says {} ({reason})", expected.name()));
        }
        if !self.account.lost.is_empty() {
            return Some(format!("packets were lost{}", which(&self.account.lost)));
        }
        if self.way == Way::Direct && !direct_at_end {
            return Some("it did not stay direct".to_owned());
        }
        (self.way == Way::Relay && self.changes != [0, 0]).then(|| "it left the relay for a while".to_owned())
    }

    fn line(&self) -> String {
        let (left, right) = self.cell;
        let to_direct = self.to_direct.map_or("-".to_owned(), |time| format!("{:.1}s", time.as_secs_f32()));
        let Account { first, sent, lost, gap } = &self.account;
        format!(
            "matrix: {:>11} -> {:<11} {:6}  to direct {to_direct:>5}  lost {}/{sent}  first {:>4}ms  gap {:>4}ms  \
             changes {}+{}{}",
            left.name(),
            right.name(),
            self.way.name(),
            lost.len(),
            first.unwrap_or_default().as_millis(),
            gap.as_millis(),
            self.changes[0],
            self.changes[1],
            self.fault.as_ref().map(|fault| format!("  WRONG: {fault}")).unwrap_or_default(),
        )
    }
}

/// Prints the table, and of the sites of cells that went wrong what they say of themselves.
fn report(outcomes: &[Outcome], lefts: &[Node], rights: &[Node]) {
    say("matrix: the whole of it, left pings right:");
    for outcome in outcomes {
        say(&outcome.line());
    }
    let wrong: Vec<_> = outcomes.iter().filter(|outcome| outcome.fault.is_some()).collect();
    let wrong_left = |node: &&Node| wrong.iter().any(|outcome| outcome.cell.0 == node.kind);
    let wrong_right = |node: &&Node| wrong.iter().any(|outcome| outcome.cell.1 == node.kind);
    for node in lefts.iter().filter(wrong_left).chain(rights.iter().filter(wrong_right)) {
        say(&node.account());
    }
}
