//! The bodies of answers.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::compression::Encoding;

/// What a stream answers: framed messages, then how it ended.
pub(crate) type StreamItem = Result<Bytes, Status>;

/// An answer's body.
pub(crate) enum ReplyBody {
    /// Bytes and nothing after them; for plain HTTP, and for calls that are refused (trailers only).
    Whole(Option<Bytes>),
    /// One framed message, then the trailers.
    Unary {
        /// Taken once it is sent.
        message: Option<Bytes>,
        /// Whether the trailers went out.
        ended: bool,
    },
    /// Framed messages as they come, then the trailers.
    Stream(Option<mpsc::Receiver<StreamItem>>),
    /// The body of a service that tonic serves.
    Tonic(tonic::body::Body),
}

impl Default for ReplyBody {
    fn default() -> Self {
        Self::Whole(None)
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Unary { message, ended } => Poll::Ready(match message.take() {
                Some(message) => Some(Ok(Frame::data(message))),
                None if std::mem::replace(ended, true) => None,
                None => Some(Ok(Frame::trailers(ok_trailers()))),
            }),
            Self::Stream(answers) => {
                let Some(receiver) = answers else { return Poll::Ready(None) };
                let end = match ready!(receiver.poll_recv(context)) {
                    Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                    Some(Err(end)) => end,
                    None => Status::internal("the stream's task ended without a word; see the server's log"),
                };
                *answers = None;
                Poll::Ready(Some(Ok(Frame::trailers(trailers(&end)))))
            }
            Self::Tonic(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Unary { ended, .. } => *ended,
            Self::Stream(answers) => answers.is_none(),
            Self::Tonic(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Tonic(body) => body.size_hint(),
            Self::Unary { .. } | Self::Stream(_) => SizeHint::default(),
        }
    }
}

fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers
}

fn trailers(status: &Status) -> HeaderMap {
    if status.code() == Code::Ok {
        return ok_trailers();
    }
    let mut trailers = HeaderMap::with_capacity(3);
    if status.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    trailers
}

/// An answer whose messages follow in `body`.
pub(crate) fn grpc_reply(body: ReplyBody, encoding: Option<Encoding>) -> Response<ReplyBody> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Some(encoding) = encoding {
        headers.insert(HeaderName::from_static("grpc-encoding"), encoding.header());
    }
    response
}

/// A refused call: the status in the headers and nothing after them.
pub(crate) fn refused(status: Status) -> Response<ReplyBody> {
    status.into_http()
}

/// An answer of plain HTTP.
pub(crate) fn plain(code: http::StatusCode, content_type: &'static str, text: &'static str) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::Whole(Some(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
