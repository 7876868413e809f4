//! The gRPC interface of meepo: generated code only, no logic. The sources are the
//! `.proto` files beside this crate.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::expect_used)]

/// The public interface.
pub mod v1 {
    tonic::include_proto!("meepo.v1");
}

/// Between meepo's own processes.
pub mod internal {
    tonic::include_proto!("meepo.internal.v1");
}

/// The descriptor set of both packages, for server reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("meepo");
