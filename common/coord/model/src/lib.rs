//! Models of the protocols of `meepo-coord` and of those who use it, small enough for a
//! checker to visit every state that a few nodes and a few faults can lead to.
//!
//! They are written by hand beside the code, so each names the function it stands for; who
//! changes one of these changes the model first. Each safeguard of the protocol can be
//! taken out ([`failover::Safeguard`], [`election::Safeguard`]): the tests show that the
//! checker then finds what the safeguard is there for.

pub mod election;
pub mod failover;
