//! Segment calls as bytes: the Identify that a change becomes, the calls that people give to `send`, and what either
//! says when it has landed.

mod call;
mod identify;
mod message_id;
mod origin;
mod pick;
mod statement;

pub use call::{Call, CallError, CallType};
pub use identify::{Computation, Identify};
pub use message_id::MessageId;
pub use origin::Origins;
pub use statement::{Landed, Statement, StatementError};
