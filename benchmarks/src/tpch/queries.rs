//! The 22 queries, with the validation parameters of the specification's clauses 2.4.1.3 to 2.4.22.3.
//!
//! The texts are in `benchmarks/queries/`. They end before LIMIT: [`Query::sql`] adds it, and [`Query::unlimited_sql`]
//! leaves it out, so that a check knows all the rows that share the last place of a limited result.

use super::verify::Ordering;

/// A query of TPC-H.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    /// 1 to 22.
    pub number: u8,
    text: &'static str,
    /// Positions of the result's columns that the query orders by.
    order_by: &'static [usize],
    limit: Option<usize>,
}

macro_rules! query {
    ($number:literal, $file:literal, $order_by:expr, $limit:expr) => {
        Query {
            number: $number,
            text: include_str!(concat!("../../queries/", $file)),
            order_by: $order_by,
            limit: $limit,
        }
    };
}

/// All queries in order.
pub const QUERIES: [Query; 22] = [
    query!(1, "q01.sql", &[0, 1], None),
    query!(2, "q02.sql", &[0, 2, 1, 3], Some(100)),
    query!(3, "q03.sql", &[1, 2], Some(10)),
    query!(4, "q04.sql", &[0], None),
    query!(5, "q05.sql", &[1], None),
    query!(6, "q06.sql", &[], None),
    query!(7, "q07.sql", &[0, 1, 2], None),
    query!(8, "q08.sql", &[0], None),
    query!(9, "q09.sql", &[0, 1], None),
    query!(10, "q10.sql", &[2], Some(20)),
    query!(11, "q11.sql", &[1], None),
    query!(12, "q12.sql", &[0], None),
    query!(13, "q13.sql", &[1, 0], None),
    query!(14, "q14.sql", &[], None),
    query!(15, "q15.sql", &[0], None),
    query!(16, "q16.sql", &[3, 0, 1, 2], None),
    query!(17, "q17.sql", &[], None),
    query!(18, "q18.sql", &[4, 3], Some(100)),
    query!(19, "q19.sql", &[], None),
    query!(20, "q20.sql", &[0], None),
    query!(21, "q21.sql", &[1, 0], Some(100)),
    query!(22, "q22.sql", &[0], None),
];

impl Query {
    /// The query of that number.
    pub fn find(number: u8) -> Option<Query> {
        QUERIES.into_iter().find(|query| query.number == number)
    }

    /// The statement to run on data of `scale`.
    pub fn sql(&self, scale: f64) -> String {
        let text = self.unlimited_sql(scale);
        match self.limit {
            Some(limit) => format!("{text}\nlimit {limit}"),
            None => text,
        }
    }

    /// The same without its LIMIT.
    pub fn unlimited_sql(&self, scale: f64) -> String {
        // Query 11 asks for the share 0.0001 / scale (clause 2.4.11.3), so that its result grows with the data.
        self.text.trim_end().replace(":fraction", &format!("{:.10}", 0.0001 / scale))
    }

    /// What the query promises about the order and the number of its rows.
    pub fn ordering(&self) -> Ordering<'static> {
        Ordering { keys: self.order_by, limit: self.limit }
    }
}
