//! Names and their addresses.
//!
//! The system is asked (`getaddrinfo`), because it alone knows of its files, caches and private domains, unless whoever
//! dials has a way of its own. The system cannot be hurried, nor called off: a look-up that is under way is shared by all
//! who ask, goes on after they have given up, and what it finds is remembered.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

/// How long a name may take: resolvers wait five seconds for each name server before they ask the next, so that the
/// third one answers in this time.
pub const NAME_TIME: Duration = Duration::from_secs(12);
/// How long is waited where addresses of an earlier look-up are known.
const KNOWN_TIME: Duration = Duration::from_millis(300);
/// Addresses this young are used without asking.
const FRESH: Duration = Duration::from_secs(30);
/// Look-ups under way at a time. Each holds a thread until it ends, which other work wants too.
const AT_ONCE: usize = 4;
/// Names that are remembered.
const NAMES: usize = 512;
/// Addresses of a name that are remembered.
const ADDRESSES: usize = 16;

/// A way to look names up.
pub trait LookUp: Send + Sync + 'static {
    /// The addresses of a name, best first.
    fn look_up(&self, name: String) -> Found;
}

/// What will be found.
pub type Found = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// As this system does it.
pub struct System;

impl LookUp for System {
    fn look_up(&self, name: String) -> Found {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|found| found.ip()).collect()) })
    }
}

type Resolved = Option<Result<Vec<IpAddr>, String>>;

#[derive(Clone)]
pub(super) struct Names(Arc<Shared>);

struct Shared {
    look_up: Arc<dyn LookUp>,
    places: Semaphore,
    names: Mutex<BTreeMap<String, Name>>,
}

#[derive(Default)]
struct Name {
    addresses: Vec<IpAddr>,
    /// When they were found; never, where they are doubted.
    found: Option<Instant>,
    asked: Option<Instant>,
    under_way: Option<watch::Receiver<Resolved>>,
}

impl Default for Names {
    fn default() -> Self {
        Self::new(System)
    }
}

impl Names {
    pub(super) fn new(look_up: impl LookUp) -> Self {
        Self::of(Arc::new(look_up))
    }

    fn of(look_up: Arc<dyn LookUp>) -> Self {
        Self(Arc::new(Shared { look_up, places: Semaphore::new(AT_ONCE), names: Mutex::default() }))
    }

    /// Others that are looked up in the same way, and know by now what these know.
    pub(super) fn apart(&self) -> Self {
        let names = Self::of(Arc::clone(&self.0.look_up));
        names.remember(self.names().iter().map(|(name, known)| (name.clone(), known.addresses.clone())).collect());
        names
    }

    /// The same with addresses of an earlier time, which are used while nobody answers.
    pub(super) fn remember(&self, known: BTreeMap<String, Vec<IpAddr>>) {
        let doubted =
            |(name, found): (String, Vec<IpAddr>)| (name, Name { addresses: unique(&found), ..Name::default() });
        self.names().extend(known.into_iter().take(NAMES).map(doubted));
    }

    /// The addresses of a name, the one that worked last first.
    pub(super) async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let (known, is_fresh) = self.known(name);
        if is_fresh {
            return Ok(known);
        }
        let mut under_way = self.ask(name);
        let patience = if known.is_empty() { NAME_TIME } else { KNOWN_TIME };
        let answered = timeout(patience, under_way.wait_for(Option::is_some)).await;
        let error = match answered.as_ref().map(|answered| answered.as_deref()) {
            Ok(Ok(Some(Ok(_)))) => return Ok(self.known(name).0),
            Ok(Ok(Some(Err(error)))) => error.clone(),
            Ok(_) => "the look-up ended".to_owned(),
            Err(_) => format!("no name server answers within {} s", patience.as_secs()),
        };
        if known.is_empty() {
            return Err(format!("look up {name:?}: {error}"));
        }
        tracing::debug!(name, error, "the addresses of an earlier look-up are used");
        Ok(known)
    }

    /// The address was connected.
    pub(super) fn note_worked(&self, name: &str, address: IpAddr) {
        if let Some(name) = self.names().get_mut(name) {
            name.addresses.sort_by_key(|known| *known != address);
        }
    }

    /// None of the addresses could be connected: the next time, the name is looked up again.
    pub(super) fn doubt(&self, name: &str) {
        if let Some(name) = self.names().get_mut(name) {
            name.found = None;
        }
    }

    fn known(&self, name: &str) -> (Vec<IpAddr>, bool) {
        let names = self.names();
        let Some(known) = names.get(name) else { return (Vec::new(), false) };
        let is_fresh = known.found.is_some_and(|at| at.elapsed() < FRESH) && !known.addresses.is_empty();
        (known.addresses.clone(), is_fresh)
    }

    /// Looks a name up, or joins whoever does.
    fn ask(&self, name: &str) -> watch::Receiver<Resolved> {
        let mut names = self.names();
        make_room(&mut names, name);
        let known = names.entry(name.to_owned()).or_default();
        // One whose task is gone has no sender any more.
        if let Some(under_way) = known.under_way.as_ref().filter(|under_way| under_way.has_changed().is_ok()) {
            return under_way.clone();
        }
        let (out, under_way) = watch::channel(None);
        known.under_way = Some(under_way.clone());
        known.asked = Some(Instant::now());
        let (names, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            // Nobody closes it.
            let _place = names.0.places.acquire().await;
            let found = names.0.look_up.look_up(name.clone()).await;
            names.note_found(name, found, &out);
        });
        under_way
    }

    fn note_found(&self, name: String, found: io::Result<Vec<IpAddr>>, out: &watch::Sender<Resolved>) {
        let found = match found {
            Ok(found) if found.is_empty() => Err("it has no address".to_owned()),
            Ok(found) => Ok(found),
            Err(error) => Err(error.to_string()),
        };
        let mut names = self.names();
        let known = names.entry(name).or_default();
        known.under_way = None;
        if let Ok(found) = &found {
            let worked = known.addresses.first().copied();
            known.addresses = unique(found);
            known.addresses.sort_by_key(|address| Some(*address) != worked);
            known.found = Some(Instant::now());
        }
        drop(names);
        // Whoever asked may have given up.
        out.send_replace(Some(found));
    }

    /// What was written whole is whole, also where another task panicked.
    fn names(&self) -> MutexGuard<'_, BTreeMap<String, Name>> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name asked for longest ago gives way to one that is new.
fn make_room(names: &mut BTreeMap<String, Name>, name: &str) {
    if names.len() < NAMES || names.contains_key(name) {
        return;
    }
    let idle = names.iter().filter(|(_, known)| known.under_way.is_none());
    let oldest = idle.min_by_key(|(_, known)| known.asked).map(|(name, _)| name.clone());
    oldest.map(|name| names.remove(&name));
}

fn unique(found: &[IpAddr]) -> Vec<IpAddr> {
    let mut unique = Vec::new();
    for address in found {
        if !unique.contains(address) && unique.len() < ADDRESSES {
            unique.push(*address);
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers when the test says so.
    struct Slow(watch::Receiver<Option<u8>>, Arc<Mutex<u32>>);

    impl LookUp for Slow {
        fn look_up(&self, _name: String) -> Found {
            *self.1.lock().unwrap() += 1;
            let mut answer = self.0.clone();
            Box::pin(async move {
                let last = *answer.wait_for(Option::is_some).await.unwrap();
                match last.unwrap() {
                    0 => Err(io::Error::other("SERVFAIL")),
                    last => Ok(vec![[192, 0, 2, last].into(), [192, 0, 2, 200].into()]),
                }
            })
        }
    }

    fn slow() -> (Names, watch::Sender<Option<u8>>, Arc<Mutex<u32>>) {
        let (answer, answers) = watch::channel(None);
        let asked = Arc::new(Mutex::new(0));
        (Names::new(Slow(answers, asked.clone())), answer, asked)
    }

    #[tokio::test]
    async fn all_who_ask_for_a_name_share_one_look_up() {
        let (names, answer, asked) = slow();
        let first = names.ask("a.example");
        let second = names.ask("a.example");
        answer.send(Some(1)).unwrap();
        for mut waiting in [first, second] {
            assert!(waiting.wait_for(Option::is_some).await.unwrap().as_ref().unwrap().is_ok());
        }
        assert_eq!(names.look_up("a.example").await.unwrap()[0], IpAddr::from([192, 0, 2, 1]));
        assert_eq!(*asked.lock().unwrap(), 1, "it is fresh");
    }

    #[tokio::test]
    async fn a_silent_name_server_does_not_take_known_addresses_away() {
        let (names, answer, asked) = slow();
        answer.send(Some(1)).unwrap();
        names.look_up("a.example").await.unwrap();
        names.note_worked("a.example", [192, 0, 2, 200].into());
        names.doubt("a.example");

        answer.send(None).unwrap();
        assert_eq!(names.look_up("a.example").await.unwrap()[0], IpAddr::from([192, 0, 2, 200]), "it worked last");
        assert_eq!(*asked.lock().unwrap(), 2);

        let mut under_way = names.ask("a.example");
        answer.send(Some(0)).unwrap();
        under_way.wait_for(Option::is_some).await.unwrap();
        assert_eq!(names.look_up("a.example").await.unwrap().len(), 2, "a failure takes nothing away");
    }

    #[tokio::test]
    async fn addresses_of_an_earlier_time_are_used_while_nobody_answers() {
        let (names, answer, _) = slow();
        names.remember([("a.example".to_owned(), vec![[192, 0, 2, 9].into()])].into());
        assert_eq!(names.look_up("a.example").await.unwrap(), [IpAddr::from([192, 0, 2, 9])]);
        assert_eq!(names.apart().look_up("a.example").await.unwrap(), [IpAddr::from([192, 0, 2, 9])]);
        answer.send(Some(1)).unwrap();
        let mut under_way = names.ask("a.example");
        under_way.wait_for(Option::is_some).await.unwrap();
        assert_eq!(names.look_up("a.example").await.unwrap()[0], IpAddr::from([192, 0, 2, 1]));
    }

    #[tokio::test]
    async fn what_is_found_late_is_remembered() {
        let (names, answer, _) = slow();
        drop(names.ask("a.example"));
        let mut under_way = names.ask("a.example");
        answer.send(Some(7)).unwrap();
        under_way.wait_for(Option::is_some).await.unwrap();
        assert_eq!(names.known("a.example"), (vec![[192, 0, 2, 7].into(), [192, 0, 2, 200].into()], true));
    }

    #[tokio::test]
    async fn names_are_remembered_up_to_a_limit() {
        let (names, answer, _) = slow();
        answer.send(Some(1)).unwrap();
        for n in 0..=NAMES {
            names.look_up(&format!("{n}.example")).await.unwrap();
        }
        let remembered = names.names();
        assert_eq!(remembered.len(), NAMES);
        assert!(!remembered.contains_key("0.example"), "the oldest gave way");
    }
}
