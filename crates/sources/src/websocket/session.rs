//! One socket, from its handshake to its end.
//!
//! One state machine and no buffers while nothing happens: bytes are read into the thread's own room and worked on at
//! once. Messages that came together go to the gate together; while groups are under way, further messages gather into
//! the next group. A socket that does not read its answers, or has too much under way, is not read from.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use lakegate_access::Action;
use lakegate_ingest::{Payloads, Sequence, Source, Submission, SubmitError, Wire};
use lakegate_model::TenantId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::bus::{Filter, Subscriber, Told};
use super::frame::{Fault, Kind, put_close, put_frame};
use super::group::{Counts, Done, Group, Verdict};
use super::message::{Asked, put_dropped, put_error, put_event, put_plain};
use super::reader::{Got, Reader};
use super::{Dialect, Shared, tenant_told};
use crate::intake::Intake;
use crate::rest::Caller;
use crate::time::now_ms;

/// So much is read at once.
const READ_BYTES: usize = 64 << 10;
/// Answers that wait for a slow reader; past it, nothing more is read from it.
const OUT_BYTES_MAX: usize = 256 << 10;
/// Confirmations are only added while fewer bytes wait.
const CONFIRM_BELOW: usize = 32 << 10;
/// Turns of a busy socket before others have theirs.
const TURNS: usize = 16;
/// How often credentials are looked at.
const CREDENTIALS_EVERY: Duration = Duration::from_secs(5);
/// How long a socket that was closed may take to hear of it.
const LINGER: Duration = Duration::from_secs(2);

thread_local! {
    static ROOM: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

type UnderWay = Pin<Box<dyn Future<Output = Done> + Send>>;

/// Where a socket is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// Nothing more is read; what is under way is answered, then the close frame is written.
    Closing(Fault),
    /// The close frame is on its way; what still comes is thrown away.
    Lingering,
    Gone,
}

/// One socket.
pub(crate) struct Session<I: Intake> {
    shared: Arc<Shared<I>>,
    dialect: Dialect,
    caller: Caller,
    tenant: Option<TenantId>,
    id: u64,
    reader: Reader,
    /// The last one is being filled.
    groups: VecDeque<Group>,
    under_way: FuturesOrdered<UnderWay>,
    /// What is under way, in its order.
    sequence: Sequence,
    counts: Counts,
    out: Vec<u8>,
    written: usize,
    subscriber: Option<Arc<Subscriber>>,
    life: Life,
    heard: Instant,
    held: usize,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    tick: Pin<Box<Sleep>>,
}

impl<I: Intake> Session<I> {
    /// Serves `caller` for that tenant.
    pub(crate) fn new(
        shared: Arc<Shared<I>>,
        dialect: Dialect,
        (caller, tenant): (Caller, Option<TenantId>),
        packing: bool,
    ) -> Self {
        let reader = Reader::new(packing, shared.limits.message_bytes_max);
        let stop = Box::pin(shared.drain.clone().cancelled_owned());
        // From 1 on: 0 stands for events that came by another way.
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let mut session = Self {
            shared,
            dialect,
            caller,
            tenant,
            id,
            reader,
            groups: VecDeque::new(),
            under_way: FuturesOrdered::new(),
            sequence: Sequence::default(),
            counts: Counts::default(),
            out: Vec::new(),
            written: 0,
            subscriber: None,
            life: Life::Open,
            heard: Instant::now(),
            held: 0,
            stop,
            tick: Box::pin(tokio::time::sleep(Duration::ZERO)),
        };
        session.wind();
        session
    }

    /// Serves the socket until it ends.
    pub(crate) async fn run<S: AsyncRead + AsyncWrite + Unpin>(mut self, mut io: S) {
        poll_fn(|context| self.poll(context, &mut io)).await;
    }

    fn poll<S: AsyncRead + AsyncWrite + Unpin>(&mut self, context: &mut Context<'_>, io: &mut S) -> Poll<()> {
        for _ in 0..TURNS {
            let mut moved = self.poll_stop(context);
            moved |= self.poll_done(context);
            moved |= self.take_confirmations(context);
            moved |= self.poll_read(context, io);
            self.submit();
            self.say_goodbye();
            moved |= self.poll_write(context, io);
            moved |= self.poll_tick(context);
            if self.life == Life::Gone {
                return Poll::Ready(());
            }
            if !moved {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// The server is ending.
    fn poll_stop(&mut self, context: &mut Context<'_>) -> bool {
        if self.life != Life::Open || self.stop.as_mut().poll(context).is_pending() {
            return false;
        }
        self.life = Life::Closing(Fault { code: 1001, reason: "the server is ending" });
        true
    }

    fn poll_done(&mut self, context: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Poll::Ready(Some(done)) = self.under_way.poll_next_unpin(context) {
            self.answer(&done);
            moved = true;
        }
        if self.under_way.is_empty() && self.groups.is_empty() && self.sequence.is_refused() {
            // Whatever came behind it is answered too.
            self.sequence = Sequence::default();
        }
        moved
    }

    fn poll_read<S: AsyncRead + Unpin>(&mut self, context: &mut Context<'_>, io: &mut S) -> bool {
        if !self.may_read() {
            return false;
        }
        ROOM.with_borrow_mut(|room| {
            let mut buffer = ReadBuf::new(room);
            let read = Pin::new(io).poll_read(context, &mut buffer);
            match read {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.take(buffer.filled_mut()),
                Poll::Ready(_) => self.life = Life::Gone,
            }
            true
        })
    }

    fn may_read(&self) -> bool {
        match self.life {
            Life::Open => {
                let full = self.groups.len() > 1 || self.groups.front().is_some_and(Group::is_full);
                !full && self.out.len() < OUT_BYTES_MAX
            }
            Life::Lingering => true,
            Life::Closing(_) | Life::Gone => false,
        }
    }

    /// Works on bytes that came.
    fn take(&mut self, data: &mut [u8]) {
        if self.life == Life::Lingering {
            return;
        }
        self.heard = Instant::now();
        let mut reader = std::mem::replace(&mut self.reader, Reader::new(false, 0));
        let taken = reader.take(data, |got| match got {
            _ if self.life != Life::Open => {}
            Got::Message(text) => self.message(text),
            Got::Ping(payload) => put_frame(&mut self.out, Kind::Pong, |out| out.extend_from_slice(payload)),
            Got::Close(code) => self.life = Life::Closing(Fault { code: code.unwrap_or(1000), reason: "" }),
        });
        self.reader = reader;
        if let Err(fault) = taken {
            self.life = Life::Closing(fault);
        }
        self.hold();
    }

    /// Keeps count of what has come in part, over all sockets.
    fn hold(&mut self) {
        let (before, now) = (self.held, self.reader.held());
        if before == now {
            return;
        }
        let all = &self.shared.figures.partial_bytes;
        let sum = all.fetch_add(now, Ordering::Relaxed) + now;
        all.fetch_sub(before, Ordering::Relaxed);
        self.held = now;
        if sum - before > self.shared.limits.partial_bytes_max && now > before {
            self.life = Life::Closing(Fault { code: 1013, reason: "too many messages are coming in part; try later" });
        }
    }

    fn message(&mut self, text: &[u8]) {
        self.shared.figures.received.fetch_add(1, Ordering::Relaxed);
        if self.dialect == Dialect::Documents {
            return self.documents(text);
        }
        match super::message::read(text) {
            Ok(Asked::Event(at)) => self.gather(|body| Some(put_event(body, text, &at))),
            Ok(Asked::Heartbeat) => self.send(|out| put_plain(out, "heartbeat_ack", now_ms())),
            Ok(Asked::Subscribe(filter)) => self.subscribe(filter),
            Ok(Asked::Unsubscribe) => {
                self.unsubscribe();
                self.send(|out| put_plain(out, "unsubscribed", now_ms()));
            }
            Err(unknown) => {
                self.send(|out| put_error(out, unknown.event_id.as_deref(), &unknown.error, now_ms()));
            }
        }
    }

    fn documents(&mut self, text: &[u8]) {
        for line in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()) {
            self.gather(|body| {
                body.extend_from_slice(line);
                None
            });
        }
    }

    /// Adds a record to the group that is being filled.
    fn gather(&mut self, put: impl FnOnce(&mut Vec<u8>) -> Option<Told>) {
        if self.groups.back().is_none_or(Group::is_full) {
            self.groups.push_back(Group::default());
        }
        if let Some(group) = self.groups.back_mut() {
            group.add(put);
        }
    }

    fn send(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        put_frame(&mut self.out, Kind::Text, put);
        self.shared.figures.sent.fetch_add(1, Ordering::Relaxed);
    }

    fn subscribe(&mut self, filter: Filter) {
        if self.caller.principal.as_ref().is_some_and(|principal| !principal.may(Action::Read, &self.shared.events)) {
            let text = "subscribe: the credentials do not allow reading the stream";
            return self.send(|out| put_error(out, None, text, now_ms()));
        }
        self.unsubscribe();
        let tenant = tenant_told(self.tenant.as_ref()).to_owned();
        self.subscriber = Some(self.shared.bus.subscribe(self.id, Some(tenant), filter));
        self.send(|out| put_plain(out, "subscribed", now_ms()));
    }

    fn unsubscribe(&mut self) {
        if let Some(subscriber) = self.subscriber.take() {
            self.shared.bus.unsubscribe(&subscriber);
        }
    }

    fn take_confirmations(&mut self, context: &mut Context<'_>) -> bool {
        let Some(subscriber) = &self.subscriber else { return false };
        subscriber.waker.register(context.waker());
        if self.life != Life::Open || self.out.len() >= CONFIRM_BELOW {
            return false;
        }
        let (dropped, texts) = subscriber.take(CONFIRM_BELOW);
        if dropped > 0 {
            self.send(|out| put_dropped(out, dropped, now_ms()));
        }
        let moved = dropped > 0 || !texts.is_empty();
        for text in texts {
            self.send(|out| out.extend_from_slice(&text));
        }
        moved
    }

    /// Gives groups to the gate: at once while little is under way, else when they are full or there is room again.
    fn submit(&mut self) {
        while let Some(group) = self.groups.front() {
            let most = if group.is_full() { self.shared.limits.groups_at_once } else { 2 };
            if self.under_way.len() >= most {
                return;
            }
            let Some(group) = self.groups.pop_front() else { return };
            self.under_way.push_back(self.submission(group));
        }
        // What is empty holds no room.
        self.groups = VecDeque::new();
    }

    fn submission(&self, group: Group) -> UnderWay {
        let Group { body, spans, told } = group;
        let stream = match self.dialect {
            Dialect::Events => self.shared.events.clone(),
            Dialect::Documents => self.shared.documents.clone(),
        };
        let payloads = Payloads { tenant: self.tenant.clone(), stream, spans, atomic: false, batch_id: String::new() };
        let submission = Submission {
            principal: self.caller.principal.clone(),
            source: Source::WebSocket,
            wire: Wire::Payloads(payloads),
            body: Bytes::from(body),
            correlation_id: self.caller.correlation_id.clone(),
            client: self.caller.client.clone(),
            in_order: true,
        };
        let (intake, limit) = (self.shared.intake.clone(), self.shared.limits.answer_timeout);
        let sequence = self.sequence.clone();
        Box::pin(async move {
            let result =
                tokio::time::timeout(limit, intake.submit_in(submission, &sequence)).await.unwrap_or_else(|_| {
                    let message =
                        format!("no answer within {} ms; whether it was stored is not known", limit.as_millis());
                    Err(SubmitError::Unavailable { message })
                });
            Done { told, result }
        })
    }

    fn answer(&mut self, done: &Done) {
        let now = now_ms();
        if self.dialect == Dialect::Documents {
            let mut counts = std::mem::take(&mut self.counts);
            self.send(|out| counts.answer(out, done));
            self.counts = counts;
            return;
        }
        let heard = self.shared.bus.is_heard();
        let tenant = tenant_told(self.tenant.as_ref());
        self.out.reserve(done.told.len() * 96);
        let (out, shared, id) = (&mut self.out, &self.shared, self.id);
        done.answer_events(now, |put, verdict| {
            put_frame(out, Kind::Text, |out| put(out));
            if let (true, Verdict::Stored(told)) = (heard, verdict) {
                shared.bus.tell(id, Some(tenant), told, now);
            }
        });
        self.shared.figures.sent.fetch_add(done.told.len() as u64, Ordering::Relaxed);
    }

    /// Writes the close frame once all else is said.
    fn say_goodbye(&mut self) {
        let Life::Closing(fault) = self.life else { return };
        if self.under_way.is_empty() && self.groups.is_empty() {
            self.unsubscribe();
            put_close(&mut self.out, fault.code, fault.reason);
            self.life = Life::Lingering;
            self.tick.as_mut().reset(Instant::now() + LINGER);
        }
    }

    fn poll_write<S: AsyncWrite + Unpin>(&mut self, context: &mut Context<'_>, io: &mut S) -> bool {
        let mut moved = false;
        while self.written < self.out.len() {
            let rest = self.out.get(self.written..).unwrap_or_default();
            match Pin::new(&mut *io).poll_write(context, rest) {
                Poll::Pending => break,
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.written += count;
                    moved = true;
                }
                Poll::Ready(_) => {
                    self.life = Life::Gone;
                    return true;
                }
            }
        }
        if self.written == self.out.len() {
            if self.life == Life::Lingering {
                // The peer reads the end of the stream behind the close frame.
                let _ = Pin::new(&mut *io).poll_shutdown(context);
            }
            (self.out, self.written) = (Vec::new(), 0);
        } else if self.written > OUT_BYTES_MAX {
            self.out.drain(..self.written);
            self.written = 0;
        }
        moved
    }

    /// Sets the next look at the socket.
    fn wind(&mut self) {
        let limits = &self.shared.limits;
        let every = if self.caller.principal.is_some() { CREDENTIALS_EVERY } else { limits.ping_interval };
        let every = every.min(limits.ping_interval).min(limits.idle_timeout);
        self.tick.as_mut().reset(Instant::now() + every);
    }

    fn poll_tick(&mut self, context: &mut Context<'_>) -> bool {
        if self.tick.as_mut().poll(context).is_pending() {
            return false;
        }
        if self.life == Life::Lingering {
            self.life = Life::Gone;
            return true;
        }
        self.wind();
        let limits = &self.shared.limits;
        let silent = self.heard.elapsed();
        let holds = self.caller.principal.as_ref().is_none_or(|principal| (self.shared.still_holds)(principal));
        if !holds {
            self.close(Fault { code: 1008, reason: "the credentials no longer hold" });
        } else if silent >= limits.idle_timeout {
            self.close(Fault { code: 1001, reason: "nothing came for too long" });
            if !self.out.is_empty() {
                // It does not even read.
                self.life = Life::Gone;
            }
        } else if silent >= limits.ping_interval && self.out.is_empty() {
            put_frame(&mut self.out, Kind::Ping, |_| {});
        }
        true
    }

    fn close(&mut self, fault: Fault) {
        if self.life == Life::Open {
            self.life = Life::Closing(fault);
        }
    }
}

impl<I: Intake> Drop for Session<I> {
    fn drop(&mut self) {
        self.unsubscribe();
        self.shared.figures.partial_bytes.fetch_sub(self.held, Ordering::Relaxed);
    }
}
