//! What a delivery would count and cost, by the same records and calls that it would make.

use super::{DEFAULT_REGION, Destination, Kind, Quota};
use crate::batch::{Lines, Record, billed_bytes};
use crate::bill::{Bill, Charge, Foreseen};
use crate::run::Counts;

impl Destination {
    /// What a chunk would count at one stream, by its records packed and not.
    pub fn foresee(&self, records: impl Fn(bool) -> Vec<Record>) -> Foreseen {
        Foreseen {
            unpacked: self.count(&records(false)),
            packed: self.count(&records(true)),
        }
    }

    /// The same of lines that are not delivered yet. Those that no record can hold are never sent.
    pub fn weigh(&self, lines: &Lines) -> Foreseen {
        self.foresee(|pack| lines.records(pack, |line| !lines.is_too_long(line)))
    }

    fn count(&self, records: &[Record]) -> Counts {
        let sizes = || records.iter().map(|record| record.data.len());
        let requests = match &self.kind {
            Kind::Firehose(aws) if aws.sends_all_singly() => records.len(),
            _ => self.streams.quota().calls(records),
        };
        Counts {
            requests: requests as u64,
            retries: 0,
            records: records.len() as u64,
            bytes: sizes().sum::<usize>() as u64,
            billed_bytes: sizes().map(billed_bytes).sum(),
        }
    }

    /// What a delivery to these streams would be charged, packed and not.
    pub fn bill(&self, streams: &[Foreseen]) -> Bill {
        let charge = |pack| {
            let counts: Vec<Counts> = streams.iter().map(|stream| stream.counts(pack)).collect();
            Charge::new(&counts, self.price_per_gb, |counts| {
                self.billed_quota().seconds(counts)
            })
        };
        Bill {
            price_per_gb: self.price_per_gb,
            pack: self.pack,
            is_free: matches!(self.kind, Kind::Directory(_)),
            unpacked: charge(false),
            packed: charge(true),
        }
    }

    /// Files cost nothing and are written at once. A first try with them is to show what Firehose would take.
    fn billed_quota(&self) -> Quota {
        match &self.kind {
            Kind::Firehose(aws) => aws.quota(),
            Kind::Directory(_) => Quota::of_region(DEFAULT_REGION),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Api, Aws, AwsSettings, Directory};
    use super::*;
    use crate::audience::DestinationName;
    use crate::batch::LineBuffer;

    fn firehose(api: Api, quota: Quota) -> Destination {
        let settings = AwsSettings {
            region: "eu-north-1".to_owned(),
            role: None,
            endpoint_url: None,
            sts_endpoint_url: None,
            api,
            quota,
        };
        Destination::firehose(DestinationName::new("main"), false, Aws::new(settings))
    }

    fn directory() -> Destination {
        let name = DestinationName::new("main");
        Destination::directory(name, true, Directory::new(PathBuf::from("nowhere")))
    }

    fn lines(count: usize, bytes: usize) -> Lines {
        let mut lines = LineBuffer::default();
        (0..count).for_each(|_| lines.push(|line| line.resize(line.len() + bytes, b'x')));
        lines.finish()
    }

    #[track_caller]
    fn check(destination: &Destination, lines: &Lines, unpacked: [u64; 4], packed: [u64; 4]) {
        let foreseen = destination.weigh(lines);
        let numbers = |counts: Counts| {
            let Counts {
                requests,
                records,
                bytes,
                billed_bytes,
                ..
            } = counts;
            [records, requests, bytes, billed_bytes]
        };
        assert_eq!(numbers(foreseen.unpacked), unpacked);
        assert_eq!(numbers(foreseen.packed), packed);
    }

    #[test]
    fn a_chunk_is_one_call_and_packed_one_record() {
        check(
            &directory(),
            &lines(500, 301),
            [500, 1, 150_500, 500 * 5_120],
            [1, 1, 150_500, 30 * 5_120],
        );
        check(&directory(), &lines(0, 0), [0; 4], [0; 4]);
    }

    #[test]
    fn a_quota_makes_calls_smaller_and_a_packed_record_is_never_split_by_it() {
        // A tenth of a second of nine tenths of 1 MiB: 313 lines, and the rest.
        check(
            &firehose(Api::Auto, Quota::of_region("eu-north-1")),
            &lines(500, 301),
            [500, 2, 150_500, 500 * 5_120],
            [1, 1, 150_500, 30 * 5_120],
        );
    }

    #[test]
    fn a_role_that_may_only_put_single_records_makes_a_call_of_each() {
        let destination = firehose(Api::PutRecord, Quota::of_region("us-east-1"));
        let lines = lines(500, 301);
        check(
            &destination,
            &lines,
            [500, 500, 150_500, 500 * 5_120],
            [1, 1, 150_500, 30 * 5_120],
        );
        let bill = destination.bill(&[destination.weigh(&lines)]);
        // 2,000 calls a second, and 5 MiB.
        let seconds = [&bill.unpacked, &bill.packed].map(|charge| charge.quota_seconds.unwrap());
        let near = |found: f64, expected: f64| (found - expected).abs() < 1e-9;
        assert!(near(seconds[0], 500.0 / 1_800.0), "{seconds:?}");
        assert!(
            near(seconds[1], 150_500.0 / (5_242_880.0 * 0.9)),
            "{seconds:?}"
        );
    }

    #[test]
    fn what_no_record_can_hold_is_on_no_bill() {
        let mut buffer = LineBuffer::default();
        for bytes in [10, 1_024_001, 20] {
            buffer.push(|line| line.resize(line.len() + bytes, b'x'));
        }
        let lines = buffer.finish();
        let twice = [2, 1, 30, 2 * 5_120];
        check(&directory(), &lines, twice, twice);
    }

    #[test]
    fn no_quota_is_no_time_and_files_have_the_one_of_the_default_region() {
        let foreseen = |destination: &Destination| destination.weigh(&lines(500, 301));
        let endless = firehose(Api::Auto, Quota::NONE);
        assert_eq!(
            endless.bill(&[foreseen(&endless)]).unpacked.quota_seconds,
            None
        );
        let files = directory();
        let bill = files.bill(&[foreseen(&files); 2]);
        assert_eq!(
            (bill.pack, bill.unpacked.records, bill.packed.records),
            (true, 1_000, 2)
        );
        let steady = 5.0 * 1_048_576.0 * 0.9;
        assert_eq!(bill.packed.quota_seconds, Some(150_500.0 / steady));
    }
}
