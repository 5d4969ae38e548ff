//! What the engine wants done, handed to the pipe that does it.

use tokio::sync::mpsc;

use super::calls::Calls;
use super::clock;
use super::control_io::{self, IoConfig};
use super::network::Transports;
use super::pipes::{Save, ToKernel};
use super::relay_pump::ToPump;
use super::state::StateError;
use warren_core::control::{Pin, Received, ServerUrl, Transmit};
use warren_core::node::{Effect, Engine, FileContent, StateFile};
use warren_core::types::MachinePrivate;
use warren_shell::Dialler;

/// What the loop sends to, and whoever waits for its answers.
pub(super) struct Outward {
    pub(super) calls: Calls,
    kernel: ToKernel,
    saves: mpsc::Sender<Save>,
    dialler: Dialler,
    pub(super) transports: Transports,
    transmits: Option<mpsc::Sender<Transmit>>,
    /// The one receiver whose other end changes.
    pub(super) received: mpsc::Receiver<Received>,
    /// Keeps `received` open while there is no coordinator.
    _open: mpsc::Sender<Received>,
}

impl Outward {
    pub(super) fn new(kernel: ToKernel, saves: mpsc::Sender<Save>, dialler: Dialler, transports: Transports) -> Self {
        let (_open, received) = mpsc::channel(1);
        Self { calls: Calls::default(), kernel, saves, dialler, transports, transmits: None, received, _open }
    }

    pub(super) fn carry_out(&mut self, engine: &mut Engine) {
        while let Some(effect) = engine.poll_effect() {
            match effect {
                Effect::Answer(id, answer) => self.calls.answer(id, answer),
                Effect::Watch(id, first) => self.calls.watch(id, first),
                Effect::Notice(line) => self.calls.notify(engine, &line),
                Effect::Connect { server, machine_key, pin } => self.connect(*server, machine_key, pin),
                Effect::Transmit(transmit) => self.transmit(transmit),
                // One action at a time is under way, so there is room.
                Effect::Kernel(action) => report(self.kernel.actions.try_send(action), "kernel"),
                // One that waits already is for all who ask.
                Effect::Figures => drop(self.kernel.figures.try_send(())),
                Effect::Names => {
                    let askers = engine.askers();
                    self.transports.update_resolver(askers, |resolver| engine.update_resolver(resolver));
                }
                Effect::HostNames(names) => self.transports.tell_host(names),
                Effect::Question { id, message, explained } => self.transports.question(id, &message, explained),
                Effect::LookUpRoute(to) => report(self.kernel.lookups.try_send(to), "kernel"),
                Effect::Save(file, content) => self.save(engine, file, content),
                Effect::Datagram { to, from, payload } => self.transports.datagram(to, from, &payload),
                Effect::Pump(command) => self.transports.commands.push(ToPump::Command(command)),
                Effect::Counters => self.transports.ask_counters(),
                Effect::Rebind => self.transports.rebind(),
                Effect::GiveBackMemory => warren_linux::give_back_memory(),
                Effect::Netcheck(action) => self.transports.netcheck(action),
                Effect::Echo(id, address) => self.transports.echo(id, address),
            }
        }
    }

    fn connect(&mut self, server: ServerUrl, machine_key: MachinePrivate, pin: Pin) {
        let (transmits, received) =
            control_io::spawn(IoConfig { server, machine_key, dialler: self.dialler.clone(), pin });
        self.transmits = Some(transmits);
        self.received = received;
    }

    /// A pipe that is full of requests nobody carries out loses the newest; the session's deadlines notice.
    fn transmit(&self, transmit: Transmit) {
        if let Some(transmits) = &self.transmits {
            report(transmits.try_send(transmit), "coordinator");
        }
    }

    fn save(&self, engine: &mut Engine, file: StateFile, content: Option<FileContent>) {
        if self.saves.try_send((file, content)).is_err() {
            engine.handle_saved(file, Err(StateError::busy(file).to_string()), clock::now());
        }
    }
}

fn report<T>(sent: Result<(), mpsc::error::TrySendError<T>>, pipe: &str) {
    if sent.is_err() {
        tracing::error!("the pipe to the {pipe} is full or closed");
    }
}
