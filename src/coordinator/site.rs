//! The port that everybody comes to: the routes of all its faces, put together.

use std::convert::Infallible;

use axum::Router;
use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper_util::service::TowerToHyperService;
use tower::ServiceExt;

use super::face::Connection;

/// The routes.
pub(crate) struct Site {
    router: Router,
}

impl Site {
    /// Those of these faces.
    pub(crate) fn new(faces: impl IntoIterator<Item = Router>) -> Self {
        Self { router: faces.into_iter().fold(Router::new(), Router::merge) }
    }

    /// Answers the requests of one connection.
    pub(crate) fn service(
        &self,
        connection: Connection,
    ) -> impl hyper::service::Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Send + use<>
    {
        let router = self.router.clone();
        let service = tower::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(connection.clone());
            router.clone().oneshot(request)
        });
        TowerToHyperService::new(service)
    }
}
