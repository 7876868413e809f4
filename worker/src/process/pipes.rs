//! The parent's ends of a process' standard streams.

use super::{error::StartError, helper, keep::Writer};
use meepo_core::run::Stream;
use nix::fcntl::{SpliceFFlags, splice};
use std::{
    fs::File,
    future::poll_fn,
    io::{self, PipeReader},
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    net::unix::pipe::Receiver,
    process::ChildStdin,
};

/// What a pipe holds unless its size was changed: all of it is read at once.
const PIPE: usize = 64 * 1024;

/// Bytes thrown away at once, at most.
const SPLICE: usize = 1 << 20;

/// What a process is given to read.
pub(super) struct Input {
    /// With the text and how much of it is written.
    open: Option<(ChildStdin, Vec<u8>, usize)>,
}

impl Input {
    pub(super) fn new(pipe: Option<(ChildStdin, Vec<u8>)>) -> Self {
        Self { open: pipe.map(|(pipe, text)| (pipe, text, 0)) }
    }

    /// Gives up on what is not written yet.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// Writes some more; pends for ever if there is nothing to write. Cancel safe.
    pub(super) async fn feed(&mut self) {
        let Some((pipe, text, done)) = &mut self.open else {
            return std::future::pending().await;
        };
        match pipe.write(&text[*done..]).await {
            Ok(n) if n > 0 => *done += n,
            // A process that closes its input early has read what it wanted.
            _ => *done = text.len(),
        }
        if *done == text.len() {
            self.open = None;
        }
    }
}

/// The ends of a process' outputs.
pub(super) struct Pipes {
    stdout: Option<Receiver>,
    stderr: Option<Receiver>,
    /// Whose turn it is; they take turns so that neither starves.
    stderr_first: bool,
    /// Where everything goes that is not kept; opened when there is such.
    null: Option<File>,
}

impl Pipes {
    /// Errors: the system refuses to watch a pipe.
    pub(super) fn new(stdout: PipeReader, stderr: PipeReader) -> io::Result<Self> {
        let stdout = Some(Receiver::from_owned_fd(stdout.into())?);
        let stderr = Some(Receiver::from_owned_fd(stderr.into())?);
        Ok(Self { stdout, stderr, stderr_first: false, null: None })
    }

    /// Whether both are read to their ends.
    pub(super) fn at_end(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Reads one piece of output; pends for ever when both are at their ends. Cancel safe.
    pub(super) async fn read(
        &mut self,
        writer: &mut Writer,
        nonce: &mut Option<String>,
        start_error: &mut Option<StartError>,
    ) {
        if writer.is_full() && self.null.is_none() {
            // Without it everything is read.
            self.null = File::options().write(true).open("/dev/null").ok();
        }
        poll_fn(|cx| self.poll_read(cx, writer, nonce, start_error)).await;
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut Writer,
        nonce: &mut Option<String>,
        start_error: &mut Option<StartError>,
    ) -> Poll<()> {
        self.stderr_first = !self.stderr_first;
        for stderr in [self.stderr_first, !self.stderr_first] {
            let pipe = if stderr { &mut self.stderr } else { &mut self.stdout };
            let Some(receiver) = pipe else { continue };
            // What a helper may have to report is read.
            let skips = writer.is_full() && !(stderr && nonce.is_some());
            let polled = match self.null.as_ref().filter(|_| skips) {
                Some(null) => poll_skip(receiver, null, cx).map_ok(|bytes| {
                    writer.skip(bytes as u64);
                    bytes
                }),
                None => poll_piece(receiver, cx, |data| {
                    if !stderr {
                        return writer.push(Stream::Stdout, data);
                    }
                    // A helper's report is the first it writes, in one piece, and the last.
                    match nonce.take().and_then(|n| helper::report(&n, data)) {
                        Some(error) => *start_error = Some(error),
                        None => writer.push(Stream::Stderr, data),
                    }
                }),
            };
            match polled {
                Poll::Pending => continue,
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0) | Err(_)) => *pipe = None,
            }
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// Reads once and hands what came to `take`; answers how much it was, 0 at the end.
fn poll_piece(
    pipe: &mut Receiver,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]),
) -> Poll<io::Result<usize>> {
    // On the stack, so that a process that writes nothing costs no buffer.
    let mut space = [MaybeUninit::uninit(); PIPE];
    let mut buf = ReadBuf::uninit(&mut space);
    ready!(Pin::new(pipe).poll_read(cx, &mut buf))?;
    if !buf.filled().is_empty() {
        take(buf.filled());
    }
    Poll::Ready(Ok(buf.filled().len()))
}

/// Throws away what is in the pipe without copying it; answers how much it was, 0 at the
/// end.
fn poll_skip(pipe: &Receiver, null: &File, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    loop {
        ready!(pipe.poll_read_ready(cx))?;
        let skipped = pipe.try_io(|| {
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
            Ok(splice(pipe, None, null, None, SPLICE, flags)?)
        });
        match skipped {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return Poll::Ready(other),
        }
    }
}
