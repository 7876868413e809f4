//! The parent's ends of a process' standard streams.

use super::{
    error::StartError,
    helper,
    hub::{CHUNK, Writer},
};
use meepo_core::run::Stream;
use std::{
    future::poll_fn,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    process::{ChildStderr, ChildStdin, ChildStdout},
};

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
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    /// Whose turn it is; they take turns so that neither starves.
    stderr_first: bool,
}

impl Pipes {
    pub(super) fn new(stdout: Option<ChildStdout>, stderr: Option<ChildStderr>) -> Self {
        Self { stdout, stderr, stderr_first: false }
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
        poll_fn(|cx| self.poll_read(cx, writer, nonce, start_error)).await;
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut Writer,
        nonce: &mut Option<String>,
        start_error: &mut Option<StartError>,
    ) -> Poll<()> {
        // On the stack, so that a process that writes nothing costs no buffer.
        let mut space = [MaybeUninit::uninit(); CHUNK];
        let mut buf = ReadBuf::uninit(&mut space);
        self.stderr_first = !self.stderr_first;
        for stderr in [self.stderr_first, !self.stderr_first] {
            buf.clear();
            let polled = if stderr {
                poll_pipe(&mut self.stderr, cx, &mut buf)
            } else {
                poll_pipe(&mut self.stdout, cx, &mut buf)
            };
            if polled.is_pending() {
                continue;
            }
            if !stderr {
                writer.push(Stream::Stdout, buf.filled());
            } else if !buf.filled().is_empty() {
                // A helper's report is the first it writes, in one piece, and the last.
                match nonce.take().and_then(|n| helper::report(&n, buf.filled())) {
                    Some(error) => *start_error = Some(error),
                    None => writer.push(Stream::Stderr, buf.filled()),
                }
            }
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// Reads into `buf`; closes the pipe at its end.
fn poll_pipe<R: AsyncRead + Unpin>(
    pipe: &mut Option<R>,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<()> {
    let Some(r) = pipe else { return Poll::Pending };
    match Pin::new(r).poll_read(cx, buf) {
        Poll::Pending => return Poll::Pending,
        Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
        Poll::Ready(_) => *pipe = None,
    }
    Poll::Ready(())
}
