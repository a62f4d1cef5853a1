//! The services of the honest server besides its data: a member of some version that gives
//! everybody the same token.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbAuthenticateRequest, PbAuthenticateResponse, PbDefragmentRequest,
    PbDefragmentResponse, PbDowngradeRequest, PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest,
    PbHashResponse, PbMaintenanceService, PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest,
    PbSnapshotResponse, PbStatusRequest, PbStatusResponse,
};
use futures::Stream;
use tonic::{
    Request, Response, Status, async_trait,
    body::Body,
    server::{Grpc, NamedService, UnaryService},
};
use tonic_prost::ProstCodec;
use tower::Service;

use super::{Method, Shared, service::Services};

#[async_trait]
impl PbMaintenanceService for Services {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<PbSnapshotResponse, Status>> + Send>>;

    async fn status(&self, _: Request<PbStatusRequest>) -> Result<Response<PbStatusResponse>, Status> {
        self.0.begin(Method::Status).await?;
        let version = self.0.scripts().version.clone();
        let header = Some(self.0.store().header());
        Ok(Response::new(PbStatusResponse { header, version, ..PbStatusResponse::default() }))
    }

    async fn alarm(&self, _: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        Err(missing())
    }

    async fn defragment(&self, _: Request<PbDefragmentRequest>) -> Result<Response<PbDefragmentResponse>, Status> {
        Err(missing())
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        Err(missing())
    }

    async fn hash_kv(&self, _: Request<PbHashKvRequest>) -> Result<Response<PbHashKvResponse>, Status> {
        Err(missing())
    }

    async fn snapshot(&self, _: Request<PbSnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(missing())
    }

    async fn move_leader(&self, _: Request<PbMoveLeaderRequest>) -> Result<Response<PbMoveLeaderResponse>, Status> {
        Err(missing())
    }

    async fn downgrade(&self, _: Request<PbDowngradeRequest>) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(missing())
    }
}

/// The `Auth` service, written by hand because etcd-client does not export all of its messages.
#[derive(Clone)]
pub(super) struct Auth(pub(super) Arc<Shared>);

impl NamedService for Auth {
    const NAME: &'static str = "etcdserverpb.Auth";
}

impl Service<http::Request<Body>> for Auth {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let auth = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/etcdserverpb.Auth/Authenticate" {
                return Ok(missing().into_http());
            }
            Ok(Grpc::new(ProstCodec::default()).unary(auth, request).await)
        })
    }
}

impl UnaryService<PbAuthenticateRequest> for Auth {
    type Response = PbAuthenticateResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<PbAuthenticateResponse>, Status>> + Send>>;

    fn call(&mut self, _: Request<PbAuthenticateRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            shared.begin(Method::Authenticate).await?;
            let header = Some(shared.store().header());
            Ok(Response::new(PbAuthenticateResponse { header, token: "token".to_owned() }))
        })
    }
}

fn missing() -> Status {
    Status::unimplemented("not needed by clients that register and resolve")
}
