//! Runs the calls that other heads make here on the runtime of queries.
//!
//! A call's future spawns the tasks that do the work, and tasks stay on the runtime where they are spawned: so it is the
//! call that is moved.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use datafusion::execution::memory_pool::MemoryPool;
use datafusion_distributed::{ExecuteTaskRequest, ProducerHead, TaskKey, Worker};
use drsdb_core::carried_status;
use futures::FutureExt;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::{runtime::Handle, sync::Notify};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, server::NamedService};
use tower::Service;
use uuid::Uuid;

use super::panics::Watch;

/// A gRPC service whose calls run on another runtime.
#[derive(Debug, Clone)]
pub struct OnQueryRuntime<S> {
    inner: S,
    handle: Handle,
    ended: Arc<Notify>,
}

impl<S> OnQueryRuntime<S> {
    /// `inner`, called on `handle`; `ended` is told when a call has ended.
    pub fn new(inner: S, handle: Handle, ended: Arc<Notify>) -> Self {
        Self { inner, handle, ended }
    }
}

/// How often the cache of stages is used after something has ended, and how many times at most.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOKS: usize = 60;
/// So many uses have the cache do what it put off; else it waits until 300 ms have passed.
const USES: usize = 80;

/// Lets go of stages that have ended. datafusion-distributed keeps the plans of stages in a cache that forgets one only
/// when it is used often or long after: until then an abandoned stage would hold its memory, and its exchanges would go on
/// filling it, and so would the stages that it reads from. What works for a stage may touch it for a while after its call
/// has ended, so the cache is used until no query holds memory any more.
pub(super) async fn let_go(worker: Worker, ended: Arc<Notify>, pool: Arc<dyn MemoryPool>) {
    loop {
        ended.notified().await;
        for _ in 0..LOOKS {
            #[allow(clippy::disallowed_methods)]
            tokio::time::sleep(LOOK_EVERY).await;
            for _ in 0..USES {
                let nothing = ExecuteTaskRequest {
                    task_key: TaskKey { query_id: Uuid::nil(), stage_id: 0, task_number: 0 },
                    target_partition_start: 0,
                    target_partition_end: 0,
                    producer_head: ProducerHead::None,
                };
                // It would wait for a plan that never comes; to look it up was all that was wanted.
                let _ = worker.execute_task(nothing).now_or_never();
            }
            if pool.reserved() == 0 {
                break;
            }
        }
    }
}

tokio::task_local! {
    /// Cancelled when the call that runs here has ended.
    static CALL: CancellationToken;
}

/// The call of another head in which this runs, if it does.
pub(super) fn current_call() -> Option<CancellationToken> {
    CALL.try_with(CancellationToken::clone).ok()
}

/// Tells that a call has ended, however it did.
struct TellsEnd {
    ended: Arc<Notify>,
    over: CancellationToken,
}

impl Drop for TellsEnd {
    fn drop(&mut self) {
        self.over.cancel();
        self.ended.notify_one();
    }
}

impl<S: NamedService> NamedService for OnQueryRuntime<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for OnQueryRuntime<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The service that said it is ready must be the one that is called.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let watch = Watch::begin();
        let over = CancellationToken::new();
        let end = TellsEnd { ended: Arc::clone(&self.ended), over: over.clone() };
        let task = self.handle.spawn(CALL.scope(over, async move { inner.call(request).await }));
        Box::pin(async move {
            let Ok(response) = task.await.unwrap_or_else(|error| {
                tracing::error!(%error, "a call from another storage server failed");
                Ok(tonic::Status::internal("the call failed").into_http())
            });
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _ = &end;
                    checked(frame, watch)
                }))
            }))
        })
    }
}

/// The trailers say that all rows have been sent. After a panic they may not have been.
fn checked(frame: Frame<Bytes>, watch: Watch) -> Frame<Bytes> {
    if !frame.is_trailers() {
        return frame;
    }
    let Err(error) = watch.check() else { return frame };
    let mut trailers = HeaderMap::new();
    match carried_status(error.to_wire()).add_header(&mut trailers) {
        Ok(()) => Frame::trailers(trailers),
        // Without a status the call fails as well.
        Err(_) => Frame::trailers(HeaderMap::new()),
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::StreamBody;
    use tonic::Status;
    use tower::ServiceExt;

    use super::*;
    use crate::query::panics;

    async fn status_after(work: impl Fn() + Send + Clone + Sync + 'static) -> Option<Status> {
        let service = tower::service_fn(move |_: Request<Body>| {
            let work = work.clone();
            async move {
                let frames = stream::once(async move {
                    let _ = tokio::spawn(async move { work() }).await;
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    Ok::<_, Status>(Frame::<Bytes>::trailers(trailers))
                });
                Ok::<_, Infallible>(Response::new(Body::new(StreamBody::new(frames))))
            }
        });
        let service = OnQueryRuntime::new(service, Handle::current(), Arc::default());
        let Ok(response) = service.oneshot(Request::new(Body::empty())).await;
        let body = response.into_body().collect().await.unwrap();
        Status::from_header_map(body.trailers().unwrap())
    }

    #[tokio::test]
    async fn a_stream_that_a_panic_ended_is_no_success() {
        panics::count_from_now_on();
        assert_eq!(status_after(|| ()).await.unwrap().code(), tonic::Code::Ok);
        let failed = status_after(|| panic!("a defect")).await.unwrap();
        assert_eq!(failed.code(), tonic::Code::Internal);
        assert!(failed.message().contains("defect"), "{failed}");
    }
}
