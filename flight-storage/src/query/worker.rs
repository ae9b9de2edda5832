//! Runs the calls that other heads make here on the runtime of queries.
//!
//! A call's future spawns the tasks that do the work, and tasks stay on the runtime where they are spawned: so it is the
//! call that is moved.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tokio::runtime::Handle;
use tonic::{body::Body, server::NamedService};
use tower::Service;

/// A gRPC service whose calls run on another runtime.
#[derive(Debug, Clone)]
pub struct OnQueryRuntime<S> {
    inner: S,
    handle: Handle,
}

impl<S> OnQueryRuntime<S> {
    /// `inner`, called on `handle`.
    pub fn new(inner: S, handle: Handle) -> Self {
        Self { inner, handle }
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
        let task = self.handle.spawn(async move { inner.call(request).await });
        Box::pin(async move {
            let response = task.await;
            response.unwrap_or_else(|error| {
                tracing::error!(%error, "a call from another storage server failed");
                Ok(tonic::Status::internal("the call failed").into_http())
            })
        })
    }
}
