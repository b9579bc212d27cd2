//! Machines that nobody could hand a join token.

use muster_connect::{CaCertificate, Endpoint};
use muster_proto::v1;
use muster_proto::v1::join_service_client::JoinServiceClient;
use tonic::Code;

use super::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_needs_no_credential_and_gives_none_where_no_pool_has_such_machines() {
    let world = World::start().await;
    let ca = CaCertificate::read(&world.folder.path().join("home/tls/ca.pem")).unwrap();
    let address = world.app().address().to_string();
    let channel = Endpoint::new(&address, ca)
        .unwrap()
        .channel()
        .await
        .unwrap();
    let mut client = JoinServiceClient::new(channel);
    let mut claim = v1::ClaimRequest {
        pool: "cloud".to_owned(),
        proof: None,
    };
    let refused = client.claim(claim.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let proof = v1::InstanceProof {
        authorization: "AWS4-HMAC-SHA256 Credential=x".to_owned(),
        ..v1::InstanceProof::default()
    };
    claim.proof = Some(v1::claim_request::Proof::Instance(proof));
    let refused = client.claim(claim).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("no pool of EC2 instances"));
}
