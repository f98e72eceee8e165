//! TLS entry: an honest client and an honest server, from the greeting through `NBD_OPT_STARTTLS` into the tunnel,
//! and somebody between them who may do anything to the bytes on their way.
//!
//! Whatever is done: nothing panics; neither side takes a byte for its peer's that the peer did not say inside TLS;
//! neither goes on in clear; what is sent stays in proportion to what was received. And where nothing was done,
//! everything that was said arrives.

use nbd_server::client::{self, Goal, Wishes};
use nbd_server::export::Exports;
use nbd_server::offers::Offers;
use nbd_server::proto::{Handshake, Progress, TlsState};
use nbd_server::tls::{Channel, ClientCerts, ClientTls, ServerTls, TlsMode};
use std::io::IoSlice;
use std::path::Path;
use std::sync::OnceLock;

/// Acts of the one between them that are carried out: more say nothing new.
const MAX_ACTS: usize = 256;

/// The first byte says how both sides begin; then come acts. An act is a byte for what (bits 0 to 2) and on the way
/// to whom (bit 3), a byte for how much, and what is put in or said.
pub fn tls_entry(data: &[u8]) {
    let Some((&start, mut script)) = data.split_first() else { return };
    let mode = if start & 1 == 0 { TlsMode::Allow } else { TlsMode::Require };
    let goal = if start & 2 == 0 { Goal::Go } else { Goal::Info };
    let wishes = Wishes { tls: true, structured: start & 4 != 0, extended: start & 8 != 0 };
    let server = Handshake::with_tls(TlsState::Clear { mode, is_possible: true });
    let client = client::Handshake::new(goal, wishes, "vol0");
    let mut line = Line {
        server: Side::new(Party::Server(server, super::exports())),
        client: Side::new(Party::Client(client)),
        is_meddled_with: false,
        is_talked_over: false,
        is_cut_short: false,
    };
    line.server.sent.extend(Handshake::greeting());
    for _ in 0..MAX_ACTS {
        let [what, how_much, rest @ ..] = script else { break };
        script = line.act(*what, usize::from(*how_much), rest);
        line.check();
    }
    line.carry_all();
    line.check();
    line.check_the_end(mode);
}

/// Both sides and what is on its way between them.
struct Line {
    server: Side,
    client: Side,
    /// Something else arrives than what was sent.
    is_meddled_with: bool,
    /// A side says more than its handshake does.
    is_talked_over: bool,
    /// A side has said good-bye before TLS stood.
    is_cut_short: bool,
}

impl Line {
    /// Does one thing; returns what is left of the script.
    fn act<'a>(&mut self, what: u8, how_much: usize, script: &'a [u8]) -> &'a [u8] {
        if what & 7 == 1 {
            self.carry_all();
            return script;
        }
        let (from, to) = match what & 8 {
            0 => (&mut self.client, &mut self.server),
            _ => (&mut self.server, &mut self.client),
        };
        let (given, rest) = script.split_at(how_much.min(script.len()));
        let wire = &mut from.sent;
        match what & 7 {
            0 => {
                let portion: Vec<u8> = wire.drain(..wire.len().min((how_much + 1) * 16)).collect();
                to.receive(&portion);
                return script;
            }
            2 => {
                let Some(at) = how_much.checked_rem(wire.len()) else { return script };
                wire[at] ^= script.first().copied().unwrap_or(1).max(1);
                self.is_meddled_with = true;
                return script.get(1..).unwrap_or_default();
            }
            3 => {
                wire.splice(..0, given.iter().copied());
            }
            4 => wire.extend(given),
            5 => {
                wire.drain(..wire.len().min(how_much + 1));
                self.is_meddled_with = true;
                return script;
            }
            6 => {
                self.is_talked_over |= from.say(given);
                return rest;
            }
            _ => {
                let is_early = !(from.is_up && to.is_up);
                let has_closed = from.close();
                self.is_talked_over |= has_closed;
                self.is_cut_short |= has_closed && is_early;
                return script;
            }
        }
        self.is_meddled_with |= !given.is_empty();
        rest
    }

    /// Lets everything through until both sides are silent.
    fn carry_all(&mut self) {
        for _ in 0..64 {
            if self.client.sent.is_empty() && self.server.sent.is_empty() {
                return;
            }
            let (up, down) = (std::mem::take(&mut self.client.sent), std::mem::take(&mut self.server.sent));
            self.server.receive(&up);
            self.client.receive(&down);
        }
        panic!("they talk for ever");
    }

    /// What holds at any time.
    fn check(&self) {
        for (side, peer) in [(&self.server, &self.client), (&self.client, &self.server)] {
            assert!(peer.said.starts_with(&side.heard), "heard what nobody said: {:?}", side.heard);
            let most = 8192 + 32 * side.received + 2 * side.said.len();
            assert!(side.sent_bytes <= most, "{} bytes sent for {}", side.sent_bytes, side.received);
        }
    }

    /// What holds when all is said.
    fn check_the_end(&self, mode: TlsMode) {
        let (server, client) = (&self.server, &self.client);
        assert!(!client.has_agreed || client.channel.is_some(), "the client goes on in clear");
        let in_clear = server.has_agreed && server.channel.is_none();
        assert!(!in_clear || mode == TlsMode::Allow, "the server serves in clear");
        if self.is_meddled_with || self.is_cut_short {
            return;
        }
        assert!(!server.has_failed && !client.has_failed, "TLS fails by itself");
        for (side, peer) in [(server, client), (client, server)] {
            assert!(side.has_closed() || side.heard == peer.said, "something was lost");
        }
        assert!(self.is_talked_over || client.has_agreed, "they do not come together");
    }
}

/// One side: its handshake, and its end of the tunnel once there is one.
struct Side {
    party: Party,
    channel: Option<Channel>,
    /// On its way to the peer.
    sent: Vec<u8>,
    /// Put into the tunnel.
    said: Vec<u8>,
    /// Come out of the tunnel.
    heard: Vec<u8>,
    received: usize,
    sent_bytes: usize,
    is_up: bool,
    has_agreed: bool,
    /// The handshake is over, well or not.
    is_over: bool,
    has_failed: bool,
}

impl Side {
    fn new(party: Party) -> Side {
        Side {
            party,
            channel: None,
            sent: Vec::new(),
            said: Vec::new(),
            heard: Vec::new(),
            received: 0,
            sent_bytes: 0,
            is_up: false,
            has_agreed: false,
            is_over: false,
            has_failed: false,
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.received += bytes.len();
        match self.channel.take() {
            None => {
                let answer = self.digest(bytes);
                self.send(&answer);
                self.flush();
            }
            Some(mut channel) => {
                self.decrypt(&mut channel, bytes);
                self.channel = Some(channel);
                if self.channel.as_ref().is_some_and(|channel| !channel.is_handshaking()) && !self.is_up {
                    self.is_up = true;
                    let question = self.party.tls_is_up();
                    self.say(&question);
                }
                self.flush();
            }
        }
    }

    fn decrypt(&mut self, channel: &mut Channel, mut bytes: &[u8]) {
        while !self.has_failed && (!bytes.is_empty() || channel.received() > 0) {
            let Ok(taken) = channel.feed(bytes) else {
                self.has_failed = true;
                return assert!(channel.feed(b"x").is_err(), "a failed channel goes on");
            };
            bytes = &bytes[taken..];
            assert!(channel.received() <= 32 << 10, "{} bytes held", channel.received());
            let plaintext = channel.plaintext().to_vec();
            assert!(taken > 0 || !plaintext.is_empty(), "nothing moves");
            channel.consume(plaintext.len());
            self.heard.extend(&plaintext);
            let answer = self.digest(&plaintext);
            self.encrypt(channel, &answer);
        }
    }

    /// Hands bytes to the handshake; returns its answer.
    fn digest(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        while !self.is_over {
            let (taken, turn) = self.party.feed(bytes, &mut answer);
            bytes = &bytes[taken..];
            match turn {
                Turn::More => return answer,
                Turn::Answered => {}
                Turn::StartTls => {
                    assert!(bytes.is_empty(), "clear bytes are left for TLS");
                    self.channel = Some(self.party.channel());
                    return answer;
                }
                Turn::Agreed => (self.is_over, self.has_agreed) = (true, true),
                Turn::Failed => self.is_over = true,
            }
        }
        answer
    }

    /// Says more than the handshake does, inside the tunnel; false if there is none that takes it.
    fn say(&mut self, bytes: &[u8]) -> bool {
        let Some(mut channel) = self.channel.take() else { return false };
        let before = self.said.len();
        self.encrypt(&mut channel, bytes);
        self.channel = Some(channel);
        self.said.len() > before
    }

    /// Says good-bye; false if there is no tunnel.
    fn close(&mut self) -> bool {
        let Some(channel) = &mut self.channel else { return false };
        channel.close();
        self.flush();
        true
    }

    /// True once this side said good-bye: it does not listen any more.
    fn has_closed(&self) -> bool {
        self.channel.as_ref().is_some_and(Channel::has_closed)
    }

    fn encrypt(&mut self, channel: &mut Channel, mut bytes: &[u8]) {
        loop {
            self.take_ciphertext(channel);
            let taken = channel.write(&[IoSlice::new(bytes)]);
            if taken == 0 {
                return;
            }
            self.said.extend(&bytes[..taken]);
            bytes = &bytes[taken..];
        }
    }

    fn flush(&mut self) {
        if let Some(mut channel) = self.channel.take() {
            self.take_ciphertext(&mut channel);
            self.channel = Some(channel);
        }
    }

    fn take_ciphertext(&mut self, channel: &mut Channel) {
        let mut room = [0; 1000];
        while channel.wants_write() {
            let len = channel.take_ciphertext(&mut room);
            assert!(len > 0, "there is something to be sent that cannot be had");
            self.send(&room[..len]);
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.sent.extend(bytes);
        self.sent_bytes += bytes.len();
    }
}

enum Party {
    Server(Handshake, Exports),
    Client(client::Handshake),
}

/// Where a handshake stands, either side.
enum Turn {
    More,
    Answered,
    StartTls,
    Agreed,
    Failed,
}

impl Party {
    fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> (usize, Turn) {
        match self {
            Party::Server(handshake, exports) => {
                let (taken, progress) = handshake.feed(bytes, &Offers::all(exports), out);
                let turn = match progress {
                    Ok(Progress::More) => Turn::More,
                    Ok(Progress::Answered) => Turn::Answered,
                    Ok(Progress::StartTls) => Turn::StartTls,
                    Ok(Progress::Chosen(_)) => Turn::Agreed,
                    Ok(Progress::Aborted) | Err(_) => Turn::Failed,
                };
                (taken, turn)
            }
            Party::Client(handshake) => {
                let (taken, step) = handshake.feed(bytes, out);
                let turn = match step {
                    Ok(client::Step::More) => Turn::More,
                    Ok(client::Step::StartTls) => Turn::StartTls,
                    Ok(client::Step::Done(_)) => Turn::Agreed,
                    Err(_) => Turn::Failed,
                };
                (taken, turn)
            }
        }
    }

    fn tls_is_up(&mut self) -> Vec<u8> {
        let mut question = Vec::new();
        if let Party::Client(handshake) = self {
            handshake.tls_is_up(&mut question);
        }
        question
    }

    fn channel(&self) -> Channel {
        let (server, client) = certificates();
        let channel = match self {
            Party::Server(..) => server.channel(),
            Party::Client(_) => client.channel("localhost"),
        };
        channel.unwrap_or_else(|error| panic!("no channel: {error}"))
    }
}

/// Those in fuzz/certificates, read once.
fn certificates() -> &'static (ServerTls, ClientTls) {
    static CERTIFICATES: OnceLock<(ServerTls, ClientTls)> = OnceLock::new();
    CERTIFICATES.get_or_init(|| {
        // Also right where nbd-server's tests compile this file.
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/certificates");
        let server = ServerTls::from_dir(&folder, ClientCerts::No);
        match (server, ClientTls::from_dir(Some(&folder))) {
            (Ok(server), Ok(client)) => (server, client),
            failed => panic!("{failed:?}"),
        }
    })
}
