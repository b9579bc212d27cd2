//! The wire of Muster: messages and services generated from `muster/v1/*.proto`, and nothing else.

/// Package `muster.v1`.
#[expect(unused_qualifications, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("muster.v1");

    /// All files of the package, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// Major version of the protocol: peers of another one are refused.
pub const PROTOCOL_MAJOR: u32 = 1;
/// Minor version of the protocol: peers of another one work.
pub const PROTOCOL_MINOR: u32 = 1;
/// Largest message either side takes, in bytes. A grant carries a task's prompt and context;
/// a plan of the largest size is submitted in one message.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a worker names among its features if it begins an attempt that goes on with unfinished edits
/// and still compares and commits its result on the base.
pub const FEATURE_RESUME: &str = "resume";

impl v1::ProtocolVersion {
    /// States what this program speaks.
    #[must_use]
    pub fn current(software: &str) -> Self {
        Self {
            major: PROTOCOL_MAJOR,
            minor: PROTOCOL_MINOR,
            software: software.to_owned(),
            features: Vec::new(),
        }
    }

    /// Tells whether this program can talk to a peer of that version.
    #[must_use]
    pub fn is_compatible(&self) -> bool {
        self.major == PROTOCOL_MAJOR
    }
}
