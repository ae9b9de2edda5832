//! The eight tables: names, definitions, sizes.

use std::fmt;

/// A table of TPC-H.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Table {
    Region,
    Nation,
    Supplier,
    Part,
    PartSupp,
    Customer,
    Orders,
    LineItem,
}

/// All tables, parents before the tables that reference them.
pub const TABLES: [Table; 8] = [
    Table::Region,
    Table::Nation,
    Table::Supplier,
    Table::Part,
    Table::PartSupp,
    Table::Customer,
    Table::Orders,
    Table::LineItem,
];

impl Table {
    /// The table's name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Table::Region => "region",
            Table::Nation => "nation",
            Table::Supplier => "supplier",
            Table::Part => "part",
            Table::PartSupp => "partsupp",
            Table::Customer => "customer",
            Table::Orders => "orders",
            Table::LineItem => "lineitem",
        }
    }

    /// How many tables must be there before it: rows of a later generation refer to earlier ones.
    pub fn generation(self) -> usize {
        match self {
            Table::Region | Table::Part => 0,
            Table::Nation => 1,
            Table::Supplier | Table::Customer => 2,
            Table::PartSupp | Table::Orders => 3,
            Table::LineItem => 4,
        }
    }

    /// Rows at `scale`: exact but for lineitem, whose orders have one to seven lines (four on average).
    pub fn rows(self, scale: f64) -> u64 {
        let scaled = |base: f64| ((base * scale) as u64).max(1);
        match self {
            Table::Region => 5,
            Table::Nation => 25,
            Table::Supplier => scaled(10_000.0),
            Table::Part => scaled(200_000.0),
            Table::PartSupp => 4 * scaled(200_000.0),
            Table::Customer => scaled(150_000.0),
            Table::Orders => scaled(1_500_000.0),
            Table::LineItem => 4 * scaled(1_500_000.0),
        }
    }

    /// `CREATE TABLE` as drsdb takes it. Region and nation are too small to be cut into shards.
    pub fn definition(self) -> &'static str {
        match self {
            Table::Region => {
                "CREATE TABLE region (
                    r_regionkey BIGINT NOT NULL PRIMARY KEY,
                    r_name CHAR(25) NOT NULL,
                    r_comment VARCHAR(152) NOT NULL
                ) WITH (shards = 1)"
            }
            Table::Nation => {
                "CREATE TABLE nation (
                    n_nationkey BIGINT NOT NULL PRIMARY KEY,
                    n_name CHAR(25) NOT NULL,
                    n_regionkey BIGINT NOT NULL,
                    n_comment VARCHAR(152) NOT NULL,
                    FOREIGN KEY (n_regionkey) REFERENCES region (r_regionkey)
                ) WITH (shards = 1)"
            }
            Table::Supplier => {
                "CREATE TABLE supplier (
                    s_suppkey BIGINT NOT NULL PRIMARY KEY,
                    s_name CHAR(25) NOT NULL,
                    s_address VARCHAR(40) NOT NULL,
                    s_nationkey BIGINT NOT NULL,
                    s_phone CHAR(15) NOT NULL,
                    s_acctbal DECIMAL(15,2) NOT NULL,
                    s_comment VARCHAR(101) NOT NULL,
                    FOREIGN KEY (s_nationkey) REFERENCES nation (n_nationkey)
                )"
            }
            Table::Part => {
                "CREATE TABLE part (
                    p_partkey BIGINT NOT NULL PRIMARY KEY,
                    p_name VARCHAR(55) NOT NULL,
                    p_mfgr CHAR(25) NOT NULL,
                    p_brand CHAR(10) NOT NULL,
                    p_type VARCHAR(25) NOT NULL,
                    p_size INTEGER NOT NULL,
                    p_container CHAR(10) NOT NULL,
                    p_retailprice DECIMAL(15,2) NOT NULL,
                    p_comment VARCHAR(23) NOT NULL
                )"
            }
            Table::PartSupp => {
                "CREATE TABLE partsupp (
                    ps_partkey BIGINT NOT NULL,
                    ps_suppkey BIGINT NOT NULL,
                    ps_availqty INTEGER NOT NULL,
                    ps_supplycost DECIMAL(15,2) NOT NULL,
                    ps_comment VARCHAR(199) NOT NULL,
                    PRIMARY KEY (ps_partkey, ps_suppkey),
                    FOREIGN KEY (ps_partkey) REFERENCES part (p_partkey),
                    FOREIGN KEY (ps_suppkey) REFERENCES supplier (s_suppkey)
                )"
            }
            Table::Customer => {
                "CREATE TABLE customer (
                    c_custkey BIGINT NOT NULL PRIMARY KEY,
                    c_name VARCHAR(25) NOT NULL,
                    c_address VARCHAR(40) NOT NULL,
                    c_nationkey BIGINT NOT NULL,
                    c_phone CHAR(15) NOT NULL,
                    c_acctbal DECIMAL(15,2) NOT NULL,
                    c_mktsegment CHAR(10) NOT NULL,
                    c_comment VARCHAR(117) NOT NULL,
                    FOREIGN KEY (c_nationkey) REFERENCES nation (n_nationkey)
                )"
            }
            Table::Orders => {
                "CREATE TABLE orders (
                    o_orderkey BIGINT NOT NULL PRIMARY KEY,
                    o_custkey BIGINT NOT NULL,
                    o_orderstatus CHAR(1) NOT NULL,
                    o_totalprice DECIMAL(15,2) NOT NULL,
                    o_orderdate DATE NOT NULL,
                    o_orderpriority CHAR(15) NOT NULL,
                    o_clerk CHAR(15) NOT NULL,
                    o_shippriority INTEGER NOT NULL,
                    o_comment VARCHAR(79) NOT NULL,
                    FOREIGN KEY (o_custkey) REFERENCES customer (c_custkey)
                )"
            }
            Table::LineItem => {
                "CREATE TABLE lineitem (
                    l_orderkey BIGINT NOT NULL,
                    l_partkey BIGINT NOT NULL,
                    l_suppkey BIGINT NOT NULL,
                    l_linenumber INTEGER NOT NULL,
                    l_quantity DECIMAL(15,2) NOT NULL,
                    l_extendedprice DECIMAL(15,2) NOT NULL,
                    l_discount DECIMAL(15,2) NOT NULL,
                    l_tax DECIMAL(15,2) NOT NULL,
                    l_returnflag CHAR(1) NOT NULL,
                    l_linestatus CHAR(1) NOT NULL,
                    l_shipdate DATE NOT NULL,
                    l_commitdate DATE NOT NULL,
                    l_receiptdate DATE NOT NULL,
                    l_shipinstruct CHAR(25) NOT NULL,
                    l_shipmode CHAR(10) NOT NULL,
                    l_comment VARCHAR(44) NOT NULL,
                    PRIMARY KEY (l_orderkey, l_linenumber),
                    FOREIGN KEY (l_orderkey) REFERENCES orders (o_orderkey),
                    FOREIGN KEY (l_partkey, l_suppkey) REFERENCES partsupp (ps_partkey, ps_suppkey)
                )"
            }
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
