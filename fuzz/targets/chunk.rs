//! The entries of a chunk, as a damaged snapshot might hold them.

#![no_main]

use audience_sync::snapshot::chunk;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let whole: Result<Vec<_>, _> = chunk::changes(data).collect();
    if let Ok(changes) = whole {
        let mut again = Vec::new();
        for change in &changes {
            chunk::push_change(&mut again, change);
        }
        let read: Vec<_> = chunk::changes(&again).filter_map(Result::ok).collect();
        assert_eq!(read.len(), changes.len());
    }
    assert!(chunk::calls(data).count() <= data.len().max(1));
});
