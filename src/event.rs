//! Segment calls as bytes: the Identify that a change becomes, and the calls that people give to `send`.

mod call;
mod identify;
mod message_id;

pub use call::{Call, CallError, CallType};
pub use identify::{Computation, Identify};
pub use message_id::MessageId;
