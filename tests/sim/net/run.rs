//! What happens to hosts, and how agent and kernel take it.

use std::net::SocketAddr;
use std::time::Duration;

use warren_core::node::{CallId, Caller, Datagram, Effect, PumpNews, Request};
use warren_core::plan::{KernelAction, KernelError, Observed, Step};
use warren_core::types::{RegionId, Timestamp};
use warren_core::wire::{disco, stun};

use super::host::{PORT, behind_loopback, loopback};
use super::kernel::Packet;
use super::{Happening, Payload, World};

/// How often the pump speaks of a peer's traffic.
const SPEAKS: Duration = Duration::from_secs(1);
const KERNEL_TICK: Duration = Duration::from_millis(500);

impl World {
    pub(super) fn happen(&mut self, host: usize, happening: Happening) {
        let now = self.agent_time(host);
        match happening {
            Happening::Arrive { from, to, payload } => self.arrive(host, from, to, payload),
            Happening::Relayed { from, region, payload } => self.relayed(host, from, region, payload),
            Happening::Timer => {
                if self.hosts[host].timer.is_some_and(|at| at <= self.now) {
                    self.hosts[host].timer = None;
                }
            }
            Happening::RelayBack { relay } => self.begin_relay(relay),
            Happening::CoordinatorBack => self.begin_coordinator(),
            Happening::Gone { peer, region } => self.gone(host, peer, region),
            Happening::Dial { region, turn } => self.dial_again(host, region, turn),
            Happening::Dialled { region, turn, relay } => self.dialled(host, region, turn, relay),
            Happening::Cut { region, turn } => self.cut(host, region, turn),
            Happening::Stun { from, network, answer } => {
                if network == self.hosts[host].network {
                    self.divert(host, from, None, answer);
                }
            }
            Happening::Input(news) => {
                if let Some(engine) = &mut self.hosts[host].engine {
                    engine.handle_netcheck(news, now);
                }
            }
            Happening::Coordinator(received) => {
                if let Some(engine) = &mut self.hosts[host].engine {
                    engine.handle_received(received, now);
                }
            }
            Happening::Map { of } => self.tell_map(host, of),
            Happening::KeepAlive { id } => self.keep_alive(host, id),
            Happening::Kernel => {
                let peers: Vec<usize> = self.hosts[host].kernel.peers.keys().copied().collect();
                for peer in peers {
                    let out = self.hosts[host].kernel.peers.get_mut(&peer).map(|state| state.tick(self.now));
                    self.kernel_sends(host, peer, out.unwrap_or_default());
                }
                self.leave_idle(host);
                self.after(KERNEL_TICK, host, Happening::Kernel);
            }
            Happening::Act(KernelAction::Observe) => self.observe(host),
            Happening::Act(KernelAction::Apply(steps)) => self.apply(host, &steps),
            Happening::Written(file, content) => {
                self.hosts[host].write(file, content);
                if let Some(engine) = &mut self.hosts[host].engine {
                    engine.handle_saved(file, Ok(()), now);
                }
            }
            Happening::Offer { to, pause, until } => self.offer(host, to, pause, until),
            Happening::Start => {
                let seed = self.chance.bytes();
                self.hosts[host].begin(seed, now);
            }
        }
        self.settle(host);
    }

    /// Somebody at a host asks its agent for another node key.
    pub(crate) fn rotate_keys(&mut self, host: usize) {
        let now = self.agent_time(host);
        if let Some(engine) = &mut self.hosts[host].engine {
            let operator = Caller { is_operator: true, ..Caller::default() };
            engine.handle_call(CallId(1), &operator, Request::RotateKeys, now);
        }
        self.settle(host);
    }

    /// Ends the agent as `kill -9` does; it comes back after a pause.
    pub(crate) fn kill(&mut self, host: usize, pause: Duration) {
        self.hosts[host].end();
        self.after_for_agent(pause, host, Happening::Start);
    }

    /// The machine is off for a while and begins anew: its kernel knows nothing, and its clock is behind.
    pub(crate) fn reboot(&mut self, host: usize, away: Duration, behind: Duration) {
        self.hosts[host].kernel.peers.clear();
        self.hosts[host].kernel.behind = behind;
        self.hosts[host].objects = Default::default();
        self.hosts[host].wall_offset = -i64::try_from(behind.as_secs()).unwrap();
        self.kill(host, away);
    }

    // ---- what comes in ----

    fn arrive(&mut self, host: usize, from: SocketAddr, to: SocketAddr, payload: Payload) {
        if !self.hosts[host].has(to.ip()) || to.port() != PORT {
            return;
        }
        match payload {
            Payload::Disco(bytes) => self.divert(host, from, Some(to.ip()), bytes),
            Payload::WireGuard { from: peer, packet } => self.kernel_receives(host, peer, packet, from),
        }
    }

    /// What is not WireGuard's goes to the agent, where the firewall diverts it and there is one.
    fn divert(&mut self, host: usize, from: SocketAddr, local: Option<std::net::IpAddr>, payload: Vec<u8>) {
        let now = self.agent_time(host);
        let host = &mut self.hosts[host];
        if let (true, Some(engine)) = (host.diverts(), &mut host.engine) {
            engine.handle_datagram(Datagram { from, local, payload }, now);
        }
    }

    fn relayed(&mut self, host: usize, from: usize, region: RegionId, payload: Payload) {
        let key = self.hosts[from].key;
        let Some(entry) = self.hosts[host].told.get(&from).copied() else { return };
        if !self.hosts[host].links.contains_key(&region) {
            return;
        }
        self.heard(host, from, region);
        match payload {
            Payload::Disco(payload) => self.tell_agent(host, PumpNews::Disco { region, from: key, payload }),
            Payload::WireGuard { from: peer, packet } => {
                // The pump forges the source, so that what comes late does not move the kernel.
                let source = entry.direct.map_or_else(|| loopback(peer), |direct| direct.endpoint);
                self.speak(host, peer);
                self.kernel_receives(host, peer, packet, source);
            }
        }
    }

    fn tell_agent(&mut self, host: usize, news: PumpNews) {
        let now = self.agent_time(host);
        if let Some(engine) = &mut self.hosts[host].engine {
            engine.handle_pump(news, now);
        }
    }

    fn speak(&mut self, host: usize, peer: usize) {
        let last = self.hosts[host].spoken.get(&peer).copied();
        if last.is_none_or(|at| self.now - at >= SPEAKS) {
            self.hosts[host].spoken.insert(peer, self.now);
            let peer = self.hosts[peer].key;
            self.tell_agent(host, PumpNews::Traffic { peer });
        }
    }

    fn kernel_receives(&mut self, host: usize, peer: usize, packet: Packet, from: SocketAddr) {
        if self.deaf.is_some_and(|(one, other)| [(one, other), (other, one)].contains(&(peer, host))) {
            return;
        }
        let keys = |of: usize, other: usize| {
            let kernel = &self.hosts[of].kernel;
            Some((kernel.key, kernel.peers.get(&other)?.key))
        };
        let (ours, theirs) = (keys(host, peer), keys(peer, host));
        let is_handshake = !matches!(packet, Packet::Data { .. });
        if is_handshake && ours != theirs.map(|(own, other)| (other, own)) {
            return;
        }
        let fresh = self.chance.next();
        let Some(state) = self.hosts[host].kernel.peers.get_mut(&peer) else { return };
        let (out, delivered) = state.receive(packet, from, fresh, self.now);
        if delivered.is_some() {
            *self.count.entry((peer, host)).or_default() += 1;
            if let Some(last) = self.delivered.insert((peer, host), self.now) {
                self.note_gap((peer, host), last);
            }
        }
        self.kernel_sends(host, peer, out);
    }

    fn kernel_sends(&mut self, host: usize, peer: usize, packets: Vec<Packet>) {
        for packet in packets {
            let packet = self.hosts[host].kernel.stamped(packet);
            let Some(endpoint) = self.hosts[host].kernel.peers.get(&peer).and_then(|state| state.endpoint) else {
                return;
            };
            let payload = Payload::WireGuard { from: host, packet };
            let Some(behind) = behind_loopback(endpoint) else {
                self.send(host, endpoint, payload);
                continue;
            };
            if !self.hosts[host].told.contains_key(&behind) {
                continue;
            }
            self.speak(host, behind);
            if let Packet::Initiation { time } = packet {
                let peer = self.hosts[behind].key;
                self.tell_agent(host, PumpNews::Initiation { peer, packet: initiation(host, time) });
            }
            let region = self.region_towards(host, behind);
            self.relay(host, behind, region, payload);
        }
    }

    fn offer(&mut self, host: usize, to: usize, pause: Duration, until: Duration) {
        self.numbers += 1;
        *self.offered.entry((host, to)).or_default() += 1;
        let number = self.numbers;
        let out = self.hosts[host].kernel.peers.get_mut(&to).map(|state| state.offer(number, self.now));
        self.kernel_sends(host, to, out.unwrap_or_default());
        if self.now + pause < until {
            self.after(pause, host, Happening::Offer { to, pause, until });
        } else if let Some(last) = self.delivered.remove(&(host, to)) {
            self.note_gap((host, to), last);
        }
    }

    // ---- the kernel, as the agent sees and changes it ----

    /// What WireGuard has changed by itself.
    fn seen(&mut self, host: usize) -> Observed {
        let offset = self.hosts[host].wall_offset;
        let host = &mut self.hosts[host];
        for (key, peer) in host.objects.state.device.iter_mut().flat_map(|device| &mut device.peers) {
            let Some(state) = host.kernel.peers.values().find(|state| state.key == *key) else { continue };
            peer.endpoint = state.endpoint;
            peer.last_handshake = state.last_handshake.map(|at| wall_at(at, offset));
            (peer.rx_bytes, peer.tx_bytes) = (state.rx_bytes, state.tx_bytes);
        }
        host.objects.seen()
    }

    fn observe(&mut self, host: usize) {
        let (observed, now) = (self.seen(host), self.agent_time(host));
        if let Some(engine) = &mut self.hosts[host].engine {
            engine.handle_observed(Ok(observed), now);
        }
    }

    fn apply(&mut self, host: usize, steps: &[Step]) {
        let results: Vec<Result<(), KernelError>> = steps.iter().map(|step| self.carry_out(host, step)).collect();
        let now = self.agent_time(host);
        if let Some(engine) = &mut self.hosts[host].engine {
            engine.handle_steps(results, now);
        }
    }

    /// One step, and what WireGuard makes of it.
    fn carry_out(&mut self, host: usize, step: &Step) -> Result<(), KernelError> {
        self.seen(host);
        self.hosts[host].objects.carry_out(step)?;
        let device = self.hosts[host].objects.state.device.clone();
        let wanted = device.iter().flat_map(|device| &device.peers);
        // While a peer's addresses go over to its other key, both are there.
        let wanted = wanted.filter(|(_, peer)| !peer.allowed_ips.is_empty());
        let wanted: Vec<_> = wanted.filter_map(|(key, peer)| Some((self.number_of(key)?, *key, peer))).collect();
        self.hosts[host]
            .kernel
            .peers
            .retain(|number, peer| wanted.iter().any(|(wanted, key, _)| wanted == number && *key == peer.key));
        let own = device.as_ref().and_then(|device| device.private_key.clone());
        self.hosts[host].kernel.set_own_key(own);
        for (number, key, peer) in wanted {
            let state = self.hosts[host].kernel.peers.entry(number).or_default();
            state.key = key;
            if let Some(endpoint) = peer.endpoint {
                state.set_endpoint(endpoint);
            }
            let out = state.set_keepalive(peer.keepalive > 0, self.now);
            self.kernel_sends(host, number, out);
        }
        Ok(())
    }

    // ---- the agent's loop ----

    /// Lets the agent proceed, carries out what it wants, and comes back when it wants to be called.
    pub(super) fn settle(&mut self, host: usize) {
        let now = self.agent_time(host);
        let Some(engine) = &mut self.hosts[host].engine else { return };
        engine.handle_timeout(now);
        engine.proceed(now);
        while let Some(effect) = self.hosts[host].engine.as_mut().and_then(|engine| engine.poll_effect()) {
            self.carry_out_effect(host, effect);
        }
        self.note_changes(host);
        let Some(at) = self.hosts[host].engine.as_ref().and_then(|engine| engine.poll_timeout(now)) else { return };
        // A time that has come already would be one that the engine forgot to act on.
        let at = at.saturating_duration_since(self.origin).max(self.now + Duration::from_micros(1));
        if self.hosts[host].timer.is_none_or(|timer| at < timer) {
            self.hosts[host].timer = Some(at);
            self.after_for_agent(at - self.now, host, Happening::Timer);
        }
    }

    fn carry_out_effect(&mut self, host: usize, effect: Effect) {
        match effect {
            Effect::Transmit(transmit) => self.ask_coordinator(host, transmit),
            Effect::Kernel(action) => {
                let pause = self.chance.millis(1, 5);
                self.after_for_agent(pause, host, Happening::Act(action));
            }
            Effect::Save(file, content) => {
                let pause = self.chance.millis(1, 5);
                self.after_for_agent(pause, host, Happening::Written(file, content));
            }
            Effect::Datagram { to, payload, .. } if stun::read_request(&payload).is_ok() => {
                self.ask_stun(host, to, &payload);
            }
            Effect::Datagram { to, payload, .. } if disco::sender(&payload).is_ok() => {
                self.hosts[host].pings += 1;
                self.send(host, to, Payload::Disco(payload));
            }
            Effect::Datagram { to, payload, .. } => {
                let packet = replayed(&payload);
                self.send(host, to, Payload::WireGuard { from: host, packet });
            }
            Effect::Pump(command) => self.command(host, command),
            Effect::Rebind => self.redial(host),
            Effect::Netcheck(action) => self.act(host, action),
            Effect::Answer(_, answer) => self.hosts[host].answers.push(answer),
            // Nobody watches here, and a connection is made with the first request.
            Effect::Watch(..)
            | Effect::Notice(_)
            | Effect::Connect { .. }
            | Effect::Names
            | Effect::HostNames(_)
            | Effect::Question { .. }
            | Effect::Figures
            | Effect::LookUpRoute(_)
            | Effect::Counters
            | Effect::GiveBackMemory
            | Effect::Echo(..) => {}
        }
    }

    fn note_changes(&mut self, host: usize) {
        for peer in (0..self.hosts.len()).filter(|peer| *peer != host) {
            let (direct, now) = (self.is_direct(host, peer), self.now);
            let host = &mut self.hosts[host];
            if host.direct.insert(peer, direct).unwrap_or(false) != direct {
                host.changes.entry(peer).or_default().push(now);
            }
        }
    }
}

/// What a clock on a wall shows that is off by so many seconds.
pub(super) fn wall_at(at: Duration, offset: i64) -> Timestamp {
    let millis = 1_800_000_000_000 + i64::try_from(at.as_millis()).unwrap() + offset * 1_000;
    Timestamp::from_millisecond(millis).unwrap()
}

/// An initiation as bytes, for the book to send again.
fn initiation(host: usize, time: Duration) -> Vec<u8> {
    let mut bytes = vec![1, host as u8];
    bytes.extend((time.as_nanos() as u64).to_le_bytes());
    bytes
}

fn replayed(bytes: &[u8]) -> Packet {
    let time = bytes[2..10].try_into().unwrap();
    Packet::Initiation { time: Duration::from_nanos(u64::from_le_bytes(time)) }
}
