//! How a client of Muster reaches its coordinator.
//!
//! A client holds an address and a join [`Token`]. The token names the coordinator's certificate
//! authority by fingerprint, so [`bootstrap_ca`] can fetch that certificate from the address itself
//! and trust it; from then on [`Endpoint`] speaks TLS to the fixed name [`TLS_NAME`] under exactly
//! that authority, whatever address was dialled. Clients on the coordinator's own machine find both
//! in the [`AddressFile`] of its home.

mod address_file;
mod bootstrap;
mod ca;
mod endpoint;
pub mod identity_request;
pub mod private_file;
mod token;

pub use address_file::{AddressFile, Error as AddressFileError};
pub use bootstrap::{Error as BootstrapError, bootstrap_ca};
pub use ca::{CaCertificate, Error as CaError, Fingerprint};
pub use endpoint::{AuthorizedChannel, Bearer, Endpoint, Error as EndpointError, check_address};
pub use token::{Error as TokenError, Secret, Token, TokenId, read_token_file};

/// The one name that every coordinator's certificate carries.
///
/// Trust is the pinned authority, not the name, so a coordinator may be dialled by IP address,
/// through a tunnel, or by a name that is in no DNS.
pub const TLS_NAME: &str = "coordinator.muster";
