//! Which column of a query's result is what, and the SQL that sorts it.

use crate::audience::Audience;
use crate::source::Question;
use crate::source::row::Columns;

/// What the wrapped query is called.
const WRAPPED: &str = "\"the query of an audience\"";

/// SQLite's own collation: the bytes of the file's encoding.
pub(super) const BINARY: &str = "BINARY";

/// Which column of the result is what.
pub(super) struct Layout {
    pub(super) question: Question,
    /// One statement, without a semicolon.
    pub(super) query: String,
    pub(super) columns: usize,
    /// Their places in the query's result.
    pub(super) found: Columns,
    /// Sort ids by their decimal text instead of as they are.
    pub(super) as_text: bool,
    pub(super) collation: &'static str,
    /// The same file gives the same rows.
    pub(super) is_pure: bool,
}

impl Layout {
    pub(super) fn of(
        names: &[String],
        audience: &Audience,
        question: Question,
    ) -> Result<Self, String> {
        let found = Columns::find(names, audience, question, |column| {
            format!("write `... AS {column}`")
        })?;
        Ok(Self {
            question,
            query: String::new(),
            columns: names.len(),
            found,
            as_text: false,
            collation: BINARY,
            is_pure: false,
        })
    }

    pub(super) fn both_ids(&self) -> bool {
        self.found.user_id.is_some() && self.found.anonymous_id.is_some()
    }

    pub(super) fn id_columns(&self) -> Vec<usize> {
        let Columns {
            user_id,
            anonymous_id,
            ..
        } = self.found;
        user_id.into_iter().chain(anonymous_id).collect()
    }

    /// Their places in the sorted result: ids come first, then the value or what is in its place, then the traits.
    pub(super) fn sorted_columns(&self) -> Columns {
        let found = &self.found;
        let ids = self.id_columns().len();
        let first_trait = ids + found.value.iter().chain(&found.is_member).count();
        let names = found.traits.iter().map(|(_, name)| name.clone());
        Columns {
            user_id: found.user_id.map(|_| 0),
            anonymous_id: found.anonymous_id.map(|_| ids - 1),
            value: found.value.map(|_| ids),
            is_member: found.is_member.map(|_| ids),
            traits: (first_trait..).zip(names).collect(),
        }
    }

    /// Why a change query cannot tell of these members: by other id columns, one user would be two.
    pub(super) fn has_other_ids(&self, changes: &Self) -> Option<String> {
        let [ids, others] = [self, changes].map(|layout| {
            let user_id = layout.found.user_id.map(|_| "`user_id`");
            let names = user_id
                .into_iter()
                .chain(layout.found.anonymous_id.map(|_| "`anonymous_id`"));
            names.collect::<Vec<_>>().join(" and ")
        });
        (ids != others).then(|| {
            format!(
                "it gives {others}, and the query gives {ids}\n\nhint: the change query must give the id columns of the query"
            )
        })
    }

    /// The query as a table with columns `c0`, `c1` and so on, by a name that no table of theirs has.
    fn named(&self, query: &str) -> String {
        let names: Vec<String> = (0..self.columns).map(|place| format!("c{place}")).collect();
        // Few change of many: an index that finds them is worth more than one that has them in order.
        let materialized = match self.question {
            Question::Members => "",
            Question::Changes { .. } => "MATERIALIZED ",
        };
        // A line of its own: the query may end with a comment.
        let names = names.join(", ");
        format!("WITH {WRAPPED} ({names}) AS {materialized}(\n{query}\n)")
    }

    /// The query with its columns in our order: ids first, then the value or what is in its place, then the
    /// traits.
    fn wrap(&self, query: &str) -> String {
        let wanted = self
            .id_columns()
            .into_iter()
            .chain(self.found.value)
            .chain(self.found.is_member)
            .chain(self.found.traits.iter().map(|(place, _)| *place));
        let wanted: Vec<String> = wanted.map(|place| format!("c{place}")).collect();
        let (named, wanted) = (self.named(query), wanted.join(", "));
        format!("{named} SELECT {wanted} FROM {WRAPPED}")
    }

    /// The query, its result sorted.
    pub(super) fn sorted(&self) -> String {
        let ids = self.id_columns();
        let by_bytes = |id: String| match self.as_text {
            true => format!("CAST({id} AS TEXT) COLLATE {}", self.collation),
            false => format!("{id} COLLATE {}", self.collation),
        };
        let order = match ids[..] {
            // Users before those who have only an anonymous id. An empty user id is none where there may be another.
            [user_id, anonymous_id] => {
                let user_id = format!("nullif(c{user_id}, '')");
                let anonymous_id = format!("c{anonymous_id}");
                vec![
                    format!("{user_id} IS NULL"),
                    by_bytes(user_id),
                    by_bytes(anonymous_id),
                ]
            }
            _ => ids
                .iter()
                .map(|place| by_bytes(format!("c{place}")))
                .collect(),
        };
        format!("{} ORDER BY {}", self.wrap(&self.query), order.join(", "))
    }

    /// The query, told to sort: with DISTINCT and GROUP BY only this takes the order of an index, and does not sort
    /// what comes ordered. For one column that compares as its bytes.
    pub(super) fn sorted_by_itself(&self) -> String {
        let id = self.id_columns()[0] + 1;
        self.wrap(&format!("{}\nORDER BY {id}", self.query))
    }

    /// Counts to 3 where ids compare as bytes: a UNION takes its collation from its first SELECT, which gives no row.
    pub(super) fn collation_probe(&self) -> String {
        let (named, id) = (self.named(&self.query), self.id_columns()[0]);
        format!(
            "SELECT count(*) FROM ({named} SELECT c{id} FROM {WRAPPED} WHERE false
             UNION VALUES ('a'), ('A'), ('a '))"
        )
    }
}
