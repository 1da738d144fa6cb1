//! The guarded tables, and the oracle: triggers that write down which keys each transaction has to fence.
//!
//! The oracle shares nothing with the proxy but the templates' text. It renders rows inside Postgres, when they change,
//! with the output functions of their types; the proxy renders what logical decoding prints of them after the commit.

use std::fmt::Write as _;

/// A guarded table.
pub struct Guarded {
    /// Its name as the settings have it.
    pub label: &'static str,
    /// Its name as SQL has it.
    pub sql: &'static str,
    /// Tables that inherit from it, which need triggers of their own. Partitions get those of their root.
    pub children: &'static [&'static str],
    /// Statements give columns other types, or partitions other files, or put another column in the place of one that a look
    /// has seen; and VACUUM FULL writes a column's catalog row anew if it was added with a default. The guard may be
    /// fenced as a whole at any time.
    pub altered: bool,
    /// What makes it.
    pub create: &'static str,
    /// Its templates.
    pub keys: &'static [&'static str],
    /// The db of its keys.
    pub db: u32,
}

/// The table that every transaction writes its tag to.
pub const TAGS: usize = 0;
/// The table that is renamed.
pub const PEOPLE: usize = 1;
/// The db that keys belong to unless a guard says otherwise.
pub const HOME_DB: u32 = 0;
/// The db of the guard that says otherwise.
pub const OTHER_DB: u32 = 3;

/// In the order of the guards.
pub const TABLES: [Guarded; 9] = [
    Guarded {
        label: "tags",
        sql: "tags",
        children: &[],
        altered: false,
        create: "CREATE TABLE tags (id bigint PRIMARY KEY)",
        keys: &["tag:<id>"],
        db: HOME_DB,
    },
    Guarded {
        label: "people",
        sql: "people",
        children: &[],
        altered: true,
        create: "CREATE TABLE people (id bigint PRIMARY KEY, email text, name text, bio text);
                 ALTER TABLE people REPLICA IDENTITY FULL;
                 ALTER TABLE people ALTER bio SET STORAGE EXTERNAL",
        keys: &["person:<id>", "person:by-email:<email>", "people:all"],
        db: HOME_DB,
    },
    // Referenced rows take theirs along; the identity is the primary key.
    Guarded {
        label: "Läden.Bestell ung",
        sql: "\"Läden\".\"Bestell ung\"",
        children: &[],
        altered: false,
        create: "CREATE SCHEMA \"Läden\";
                 CREATE TABLE \"Läden\".\"Bestell ung\" (
                     \"user\" bigint REFERENCES people ON DELETE CASCADE ON UPDATE CASCADE, \"Nr €\" int,
                     total numeric(10, 2), PRIMARY KEY (\"Nr €\", \"user\"))",
        keys: &["order:<user>:<Nr €>", "{orders:<user>}"],
        db: HOME_DB,
    },
    Guarded {
        label: "kinds",
        sql: "kinds",
        children: &[],
        altered: false,
        create: "CREATE TYPE mood AS ENUM ('sad', 'o''k', 'ganz fröhlich');
                 CREATE DOMAIN short AS text CHECK (length(value) < 20);
                 CREATE TYPE pair AS (a int, b text);
                 CREATE TABLE kinds (id int PRIMARY KEY, u uuid, b bool, d date, ts timestamptz, st timestamp,
                     tt time, iv interval, f float8, g float4, n numeric, m money, by bytea, j jsonb, ip inet, a text[],
                     e mood, dm short, c char(5), r int4range, p pair, o oid, bi bit varying(8));
                 ALTER TABLE kinds REPLICA IDENTITY FULL",
        keys: &[
            "kind:<u>:<b>",
            "kind:time:<d>:<ts>:<st>:<tt>:<iv>",
            "kind:number:<f>:<g>:<n>:<m>:<o>",
            "kind:bytes:<by>:<bi>",
            "kind:<j>:<ip>:<a>",
            "kind:own:<e>:<dm>:<c>:<r>:<p>",
        ],
        db: OTHER_DB,
    },
    Guarded {
        label: "by_index",
        sql: "by_index",
        children: &[],
        altered: true,
        create: "CREATE TABLE by_index (id int, code text NOT NULL, n int NOT NULL, note text);
                 CREATE UNIQUE INDEX by_index_key ON by_index (n, code);
                 ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_key",
        keys: &["code:<code>:<n>", "code:<code>"],
        db: HOME_DB,
    },
    // Values that are stored out of line, and left out of an UPDATE's new row if they stay: in keys too.
    Guarded {
        label: "large",
        sql: "large",
        children: &[],
        altered: true,
        create: "CREATE TABLE large (id int PRIMARY KEY, title text, body text);
                 ALTER TABLE large ALTER title SET STORAGE EXTERNAL, ALTER body SET STORAGE EXTERNAL;
                 ALTER TABLE large REPLICA IDENTITY FULL",
        keys: &["large:<id>:<title>", "large:<title>", "people:all"],
        db: HOME_DB,
    },
    Guarded {
        label: "slugs",
        sql: "slugs",
        children: &[],
        altered: true,
        create: "CREATE TABLE slugs (slug text PRIMARY KEY, body text);
                 ALTER TABLE slugs ALTER slug SET STORAGE EXTERNAL, ALTER body SET STORAGE EXTERNAL",
        keys: &["slug:<slug>"],
        db: HOME_DB,
    },
    // Partitions of which one has its columns in another order, and one has partitions itself.
    Guarded {
        label: "days",
        sql: "days",
        children: &[],
        altered: true,
        create: "CREATE TABLE days (id int, day int NOT NULL, note text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
                 CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (10);
                 CREATE TABLE days_2 (note text, gone int, day int NOT NULL, id int NOT NULL, PRIMARY KEY (id, day));
                 ALTER TABLE days_2 DROP COLUMN gone;
                 ALTER TABLE days ATTACH PARTITION days_2 FOR VALUES FROM (10) TO (20);
                 CREATE TABLE days_3 PARTITION OF days DEFAULT PARTITION BY HASH (id);
                 CREATE TABLE days_31 PARTITION OF days_3 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
                 CREATE TABLE days_32 PARTITION OF days_3 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
                 ALTER TABLE days_32 REPLICA IDENTITY FULL",
        keys: &["day:<day>:<id>", "days:<day>"],
        db: OTHER_DB,
    },
    Guarded {
        label: "beasts",
        sql: "beasts",
        children: &["wolves"],
        altered: false,
        create: "CREATE TABLE beasts (id int PRIMARY KEY, name text);
                 CREATE TABLE wolves (pack int, PRIMARY KEY (id)) INHERITS (beasts)",
        keys: &["beast:<id>", "beasts:all"],
        db: HOME_DB,
    },
];

/// Where the oracle writes, and what it writes for the keys that messages name.
const ORACLE: &str = "
CREATE SCHEMA oracle;
-- A guard without a key: all its keys. A key without a guard: named by a message.
CREATE TABLE oracle.log (xid xid8 NOT NULL, guard int, db int NOT NULL, key text);
CREATE FUNCTION oracle.named(key text, db int) RETURNS void LANGUAGE sql AS
    'INSERT INTO oracle.log VALUES (pg_current_xact_id(), NULL, db, key)';
CREATE FUNCTION oracle.whole(guard int, db int) RETURNS void LANGUAGE sql AS
    'INSERT INTO oracle.log VALUES (pg_current_xact_id(), guard, db, NULL)';
";

/// The SQL that makes a table and its triggers.
///
/// The trigger's settings are the walsender's: what a session has set must not show. Its statements are planned anew each
/// time, because columns change their types meanwhile.
pub fn create(n: usize, table: &Guarded) -> String {
    let mut keys = String::new();
    for template in table.keys {
        let _ = write!(keys, "{}({})", if keys.is_empty() { "" } else { ", " }, rendered(template));
    }
    let log = format!(
        "EXECUTE $sql$INSERT INTO oracle.log SELECT pg_current_xact_id(), {n}, {}, k.key \
         FROM (SELECT ($1).*) r, LATERAL (VALUES {keys}) k (key) WHERE k.key IS NOT NULL$sql$",
        table.db
    );
    let (db, create) = (table.db, table.create);
    let triggers: String = [table.sql].iter().chain(table.children).map(|sql| triggers(n, sql)).collect();
    format!(
        "{create};
         CREATE FUNCTION oracle.of_{n}() RETURNS trigger LANGUAGE plpgsql
         SET timezone = 'UTC' SET datestyle = 'ISO, MDY' SET intervalstyle = 'postgres'
         SET extra_float_digits = 1 SET bytea_output = 'hex' AS $oracle$
         BEGIN
             IF TG_OP = 'TRUNCATE' THEN PERFORM oracle.whole({n}, {db}); END IF;
             IF TG_OP IN ('UPDATE', 'DELETE') THEN {log} USING OLD; END IF;
             IF TG_OP IN ('INSERT', 'UPDATE') THEN {log} USING NEW; END IF;
             RETURN NULL;
         END $oracle$; {triggers}"
    )
}

fn triggers(n: usize, sql: &str) -> String {
    format!(
        "CREATE TRIGGER oracle_rows AFTER INSERT OR UPDATE OR DELETE ON {sql}
             FOR EACH ROW EXECUTE FUNCTION oracle.of_{n}();
         CREATE TRIGGER oracle_all AFTER TRUNCATE ON {sql}
             FOR EACH STATEMENT EXECUTE FUNCTION oracle.of_{n}();
         ALTER TABLE {sql} ENABLE ALWAYS TRIGGER oracle_rows, ENABLE ALWAYS TRIGGER oracle_all;"
    )
}

/// All of it, statement by statement.
pub fn schema() -> Vec<String> {
    let tables = TABLES.iter().enumerate().map(|(n, table)| create(n, table));
    std::iter::once(ORACLE.to_owned()).chain(tables).collect()
}

/// A template as an expression over a row `r`: NULL if a column of it is.
fn rendered(template: &str) -> String {
    let mut expression = String::new();
    for (n, part) in template.split(['<', '>']).enumerate() {
        let joint = if n == 0 { "" } else { " || " };
        let _ = match n % 2 {
            0 => write!(expression, "{joint}'{}'", part.replace('\'', "''")),
            // `format` prints with the type's output function, which a cast to text does not always.
            _ => write!(
                expression,
                "{joint}CASE WHEN num_nulls(r.\"{part}\") = 0 THEN format('%s', r.\"{part}\") END"
            ),
        };
    }
    expression
}
