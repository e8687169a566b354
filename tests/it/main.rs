//! The binary as people and programs use it: a directory, a command line, what it prints, and what arrives.

mod firehose;
mod moto;
mod support;
mod sync;
