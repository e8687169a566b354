//! Which column of a query's result is what, and the SQL that sorts it.

use crate::audience::{Audience, Class};
use crate::source::Question;

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
    pub(super) user_id: Option<usize>,
    pub(super) anonymous_id: Option<usize>,
    pub(super) value: Option<usize>,
    /// Of a change query.
    pub(super) is_member: Option<usize>,
    pub(super) traits: Vec<(String, usize)>,
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
        let find = |wanted: &str| {
            let mut places =
                (0..names.len()).filter(|place| names[*place].eq_ignore_ascii_case(wanted));
            match (places.next(), places.next()) {
                (_, Some(_)) => Err(format!("it has two columns `{wanted}`")),
                (place, None) => Ok(place),
            }
        };
        let (mut user_id, anonymous_id) = (find("user_id")?, find("anonymous_id")?);
        let value = find("value")?;
        if names.len() == 1 && anonymous_id.is_none() {
            user_id = Some(0);
        }
        if user_id.is_none() && anonymous_id.is_none() {
            let columns = names.join("`, `");
            return Err(format!(
                "it has no column `user_id` or `anonymous_id`, only `{columns}`\n\nhint: write `... AS user_id`"
            ));
        }
        if audience.class == Class::Trait && (value.is_none() || names.len() == 1) {
            return Err(
                "a computed trait needs a column `value`\n\nhint: write `... AS value`".to_owned(),
            );
        }
        let value = value.filter(|_| audience.class == Class::Trait);
        let is_member = match question {
            Question::Members => None,
            Question::Changes { .. } => Some(find("is_member")?.ok_or(
                "it has no column `is_member`\n\nhint: write `... AS is_member`, 1 for a member and 0 for who is none",
            )?),
        };
        let mut traits = Vec::new();
        for name in &audience.traits {
            let place = find(name)?
                .ok_or_else(|| format!("it has no column `{name}`, which `traits` names"))?;
            traits.push((name.clone(), place));
        }
        // Extra traits go out in the order of the query's columns.
        traits.sort_by_key(|(_, place)| *place);
        Ok(Self {
            question,
            query: String::new(),
            columns: names.len(),
            user_id,
            anonymous_id,
            value,
            is_member,
            traits,
            as_text: false,
            collation: BINARY,
            is_pure: false,
        })
    }

    pub(super) fn both_ids(&self) -> bool {
        self.user_id.is_some() && self.anonymous_id.is_some()
    }

    pub(super) fn id_columns(&self) -> Vec<usize> {
        self.user_id.into_iter().chain(self.anonymous_id).collect()
    }

    /// Why a change query cannot tell of these members: by other id columns, one user would be two.
    pub(super) fn has_other_ids(&self, changes: &Self) -> Option<String> {
        let [ids, others] = [self, changes].map(|layout| {
            let user_id = layout.user_id.map(|_| "`user_id`");
            let names = user_id
                .into_iter()
                .chain(layout.anonymous_id.map(|_| "`anonymous_id`"));
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
            .chain(self.value)
            .chain(self.is_member)
            .chain(self.traits.iter().map(|(_, place)| *place));
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
