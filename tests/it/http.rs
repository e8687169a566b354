//! Members from a server: how it is asked, what is taken of its answers, and what decides nothing.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::web::{Reply, Request, Web};
use crate::support::{Project, Ran, within};

const REST: &str = r#"
[destination.main]
directory = "delivered"
mapping = { identify = "members" }
"#;

const SCHEDULE: &str = r#"
[[audience]]
name = "Big Spenders"
source = "crm"
"#;

const BY_CURSOR: &str = r#"
items = "/data"
next = "/paging/cursor"
cursor_parameter = "cursor"
total = "/paging/total"
"#;

/// A project whose source is this server.
fn project(url: &str, settings: &str) -> Project {
    let project = Project::empty();
    configure(&project, url, settings);
    project.write("schedules/main.toml", SCHEDULE);
    project
}

fn configure(project: &Project, url: &str, settings: &str) {
    let config = format!("[source.crm]\nurl = \"{url}\"\n{settings}\n{REST}");
    project.write("audience-sync.toml", &config);
}

/// Who was delivered, and with what.
fn told(project: &Project) -> Vec<(String, bool)> {
    let records = project.delivered();
    let told = records.iter().map(|record| {
        let user = record["userId"].as_str().unwrap().to_owned();
        (user, record["traits"]["big_spenders"].as_bool().unwrap())
    });
    let mut told: Vec<_> = told.collect();
    told.sort();
    told
}

fn everyone(users: &[&str]) -> Vec<(String, bool)> {
    users
        .iter()
        .map(|user| ((*user).to_owned(), true))
        .collect()
}

/// The error of a sync that decides nothing, from which nobody learns a secret or a user.
#[track_caller]
fn fail(project: &Project) -> String {
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(!project.path("delivered").exists(), "{ran:?}");
    let line = &ran.lines()[0];
    assert_eq!(line["outcome"], "failed", "{ran:?}");
    shows_nothing(&ran);
    line["error"].as_str().unwrap().to_owned()
}

#[track_caller]
fn shows_nothing(ran: &Ran) {
    for secret in ["hunter2", "user_1"] {
        assert!(!ran.stderr.contains(secret), "{secret}: {ran:?}");
        assert!(!ran.stdout.contains(secret), "{secret}: {ran:?}");
    }
}

#[test]
fn pages_are_asked_for_by_cursor_until_there_is_none() {
    let members: Vec<Value> = vec![
        json!({ "user_id": "user_3", "email": "3@x" }),
        json!("user_1"),
        json!(22),
        json!({ "user_id": "user_3", "email": "3@x" }),
        json!({ "anonymous_id": null, "user_id": "user_0" }),
    ];
    let web = Web::start(move |request| Reply::page(request, &members, 2));
    let headers = "headers = { authorization = { env = \"CRM_TOKEN\" }, x-tenant = \"shop\" }";
    let url = web.url("/audiences/{key}/members?limit=2&id={id}");
    let mut project = project(&url, &format!("{BY_CURSOR}{headers}"));
    let token = "Bearer hunter2".to_owned();
    project.variables.insert("CRM_TOKEN".to_owned(), token);
    let line = project.sync();
    assert_eq!(line["members"], 4);
    assert_eq!(
        told(&project),
        everyone(&["22", "user_0", "user_1", "user_3"])
    );
    let requests = web.requests();
    let cursors: Vec<_> = requests
        .iter()
        .map(|it| it.query.get("cursor").cloned())
        .collect();
    assert_eq!(cursors, [None, Some("2".to_owned()), Some("4".to_owned())]);
    for Request {
        path,
        query,
        headers,
    } in requests
    {
        assert_eq!(path, "/audiences/big_spenders/members");
        assert_eq!((&*query["limit"], &*query["id"]), ("2", "big_spenders"));
        assert_eq!(
            (&*headers["authorization"], &*headers["x-tenant"]),
            ("Bearer hunter2", "shop")
        );
        assert!(headers["user-agent"].starts_with("audience-sync/"));
    }
}

#[test]
fn the_frozen_key_and_the_id_stand_in_the_address() {
    let web = Web::start(|_| Reply::json(&json!(["a"])));
    let project = project(&web.url("/{id}/{key}"), "");
    let schedule = |name: &str| {
        let schedule =
            format!("[[audience]]\nid = \"aud/1\"\nname = \"{name}\"\nsource = \"crm\"\n");
        project.write("schedules/main.toml", &schedule);
    };
    for name in ["Big Spenders", "Very Big Spenders"] {
        schedule(name);
        project.sync();
        assert_eq!(web.requests()[0].path, "/aud%2F1/big_spenders");
    }
}

#[test]
fn pages_are_found_by_their_addresses() {
    let lines = |text: &str| Reply::new("application/x-ndjson", text);
    let by_link = Web::start(move |request| match &*request.path {
        "/members" => {
            lines("\"a\"\n{\"user_id\":\"b\"}").with("link", "</more?page=2>; rel=\"next\"")
        }
        _ => lines("\"c\"\n")
            .with("link", "</members>; rel=\"prev\"")
            .in_chunks(),
    });
    let found_by_link = project(&by_link.url("/members"), "");
    assert_eq!(found_by_link.sync()["members"], 3);
    assert_eq!(by_link.requests().len(), 2);

    let by_address = Web::start(|request| match request.query.get("page") {
        None => Reply::json(&json!({ "list": ["a"], "links": { "next": "?page=2" } })),
        Some(_) => Reply::json(&json!({ "links": { "next": "" }, "list": ["b"] })),
    });
    let settings = "items = \"/list\"\nnext = \"/links/next\"";
    let found_by_address = project(&by_address.url("/members"), settings);
    assert_eq!(found_by_address.sync()["members"], 2);
    assert_eq!(by_address.requests().len(), 2);
}

#[test]
fn an_audience_may_say_where_its_members_are() {
    let web = Web::start(|request| match &*request.path {
        "/api/vips" => Reply::new("text/csv", "email,id\n1@x,v\n"),
        _ => Reply::new("text/csv; charset=utf-8", "id\na\nb\n"),
    });
    let project = project(&web.url("/api/all"), "columns = { user_id = \"id\" }");
    let vips =
        "\n[[audience]]\nname = \"Vips\"\nsource = \"crm\"\nurl = \"vips\"\ntraits = [\"email\"]\n";
    project.write("schedules/main.toml", &format!("{SCHEDULE}{vips}"));
    project.succeed(&["sync"]);
    let delivered = project.delivered();
    let vip = delivered.iter().find(|it| it["userId"] == "v").unwrap();
    assert_eq!(vip["traits"], json!({ "vips": true, "email": "1@x" }));
    assert_eq!(delivered.len(), 3);
}

#[test]
fn what_is_packed_is_unpacked_whether_it_is_said_or_not() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(b"user_id\na\nb\n").unwrap();
    let packed = packed.finish().unwrap();
    let cut = packed[..packed.len() - 9].to_vec();
    let reply = |body: &[u8]| Reply::new("text/csv", body);
    let said = {
        let packed = packed.clone();
        Web::start(move |_| reply(&packed).with("content-encoding", "gzip"))
    };
    let first = project(&said.url("/"), "");
    assert_eq!(first.sync()["members"], 2);
    assert_eq!(said.requests()[0].headers["accept-encoding"], "gzip");
    let unsaid = Web::start(move |_| reply(&packed));
    assert_eq!(
        project(&unsaid.url("/members.csv.gz"), "").sync()["members"],
        2
    );
    let marked = Web::start(|_| Reply::new("application/json", "\u{feff}[\"a\"]"));
    assert_eq!(project(&marked.url("/"), "").sync()["members"], 1);
    let broken = Web::start(move |_| reply(&cut).until_closed());
    let error = fail(&project(&broken.url("/"), ""));
    assert!(error.contains("page 1, row"), "{error}");
}

#[test]
fn a_server_that_has_nothing_new_is_asked_once() {
    let answer = |etag: &'static str, users: &'static [&'static str]| {
        move |request: &Request| match request.headers.get("if-none-match") {
            Some(known) if known == etag => Reply::status(304),
            _ => Reply::json(&json!(users)).with("etag", etag),
        }
    };
    let web = Web::start(answer("\"1\"", &["a", "b"]));
    let project = project(&web.url("/"), "");
    assert_eq!(project.sync()["members"], 2);
    web.requests();
    for _ in 0..2 {
        let line = project.sync();
        assert_eq!(
            (&line["outcome"], &line["members"]),
            (&json!("unchanged"), &json!(2))
        );
        let requests = web.requests();
        assert_eq!(requests.len(), 1);
        assert_eq!(requests[0].headers["if-none-match"], "\"1\"");
    }
    web.answer(answer("\"2\"", &["b", "c"]));
    let line = project.sync();
    assert_eq!((&line["added"], &line["removed"]), (&json!(1), &json!(1)));
    assert_eq!(web.requests().len(), 1);
    // Another question is another answer, whatever the server calls it.
    configure(&project, &web.url("/"), "columns = { user_id = \"id\" }");
    project.sync();
    assert!(!web.requests()[0].headers.contains_key("if-none-match"));
}

#[test]
fn what_an_etag_is_not_of_is_read_again() {
    // A page that is what it was, and has another one behind it now.
    let web = Web::start(|_| Reply::json(&json!(["a"])).with("etag", "\"1\""));
    let grown = project(&web.url("/"), "");
    grown.sync();
    web.answer(|request| {
        let is_first = !request.query.contains_key("page");
        let link = "</?page=2>; rel=next";
        match request.headers.contains_key("if-none-match") {
            true => Reply::status(304).with("link", link),
            false if is_first => Reply::json(&json!(["a"]))
                .with("etag", "\"1\"")
                .with("link", link),
            false => Reply::json(&json!(["b"])),
        }
    });
    assert_eq!(grown.sync()["members"], 2);

    // Another page, to which the same address leads now.
    let page = |day: &'static str, member: &'static str| {
        move |request: &Request| match (&*request.path, request.headers.get("if-none-match")) {
            ("/", _) => Reply::status(302).with("location", day),
            (_, Some(_)) => Reply::status(304),
            (_, None) => Reply::json(&json!([member])).with("etag", "\"1\""),
        }
    };
    let web = Web::start(page("/one", "a"));
    let redirected = project(&web.url("/"), "");
    redirected.sync();
    web.answer(page("/two", "b"));
    let line = redirected.sync();
    assert_eq!((&line["added"], &line["removed"]), (&json!(1), &json!(1)));

    // A total that stands beside the page.
    let total = |total: &'static str| {
        move |request: &Request| match request.headers.contains_key("if-none-match") {
            true => Reply::status(304),
            false => Reply::json(&json!(["a"]))
                .with("etag", "\"1\"")
                .with("x-total", total),
        }
    };
    let web = Web::start(total("1"));
    let counted = project(&web.url("/"), "total = \"header:x-total\"");
    counted.sync();
    web.answer(total("2"));
    let ran = counted.run(&["sync"]);
    assert_eq!(ran.code, 1, "{ran:?}");
}

#[test]
fn of_several_pages_everything_is_read_again() {
    let members: Vec<Value> = (0..4).map(|number| json!(number)).collect();
    let web = Web::start(move |request| Reply::page(request, &members, 2).with("etag", "\"1\""));
    let project = project(&web.url("/"), BY_CURSOR);
    for _ in 0..2 {
        project.sync();
        let requests = web.requests();
        assert_eq!(requests.len(), 2);
        assert!(
            requests
                .iter()
                .all(|it| !it.headers.contains_key("if-none-match"))
        );
    }
}

#[test]
fn a_server_out_of_order_is_asked_again_and_nothing_is_counted_twice() {
    let members: Vec<Value> = (0..5).map(|number| json!(number)).collect();
    let asked = AtomicUsize::new(0);
    let web = Web::start(move |request| {
        let page = Reply::page(request, &members, 3);
        match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Reply::status(503).with("retry-after", "0"),
            1 => Reply::status(429).with("retry-after", "Tue, 24 Nov 2020 10:00:00 GMT"),
            2 => page.broken_off(40),
            3 => page,
            4 => Reply::status(500).with("retry-after", "0"),
            _ => page.in_chunks(),
        }
    });
    let project = project(&web.url("/"), BY_CURSOR);
    assert_eq!(project.sync()["members"], 5);
    assert_eq!(web.requests().len(), 6);
}

#[test]
fn a_page_that_never_comes_decides_nothing() {
    let unavailable = Web::start(|request| match request.query.get("cursor") {
        None => Reply::page(request, &[json!("user_1"), json!("b")], 1),
        Some(_) => Reply::status(503).with("retry-after", "0"),
    });
    let error = fail(&project(
        &unavailable.url("/members?cursors=hunter2"),
        BY_CURSOR,
    ));
    let place = format!(
        "source `crm`: {}, page 2: HTTP 503 Service Unavailable",
        unavailable.url("/members")
    );
    assert_eq!(error, place);
    assert_eq!(unavailable.requests().len(), 6);

    let patient = Web::start(|_| Reply::status(503).with("retry-after", "3600"));
    let error = fail(&project(&patient.url("/"), ""));
    assert!(
        error.ends_with("HTTP 503 Service Unavailable, and not to be asked again for 1h"),
        "{error}"
    );
    assert_eq!(patient.requests().len(), 1);
}

#[test]
fn an_answer_that_breaks_off_is_not_taken_for_a_whole_one() {
    let csv = || Reply::new("text/csv", "user_id\nuser_1\nuser_2\n");
    let check = |reply: Reply, asked: usize, words: &str| {
        let web = Web::start(move |_| reply.clone());
        let error = fail(&project(&web.url("/"), ""));
        assert!(error.contains(words), "{error}");
        assert_eq!(web.requests().len(), asked);
    };
    // HTTP says that something is missing.
    check(csv().broken_off(15), 5, "page 1: ");
    // Only the rows themselves say so.
    check(
        Reply::new("text/csv", "user_id\nuser_1\nuse").until_closed(),
        1,
        "row 2: the answer ends inside it",
    );
    check(
        Reply::new("application/json", "[\"user_1\"").until_closed(),
        1,
        "the answer ends inside it",
    );
    check(
        Reply::new("application/x-ndjson", "").until_closed(),
        1,
        "the answer ends",
    );
    // Between two rows nothing says so.
    check(
        csv().until_closed(),
        1,
        "page 1: nothing says where the answer ends",
    );
    let web = Web::start(move |_| csv().until_closed().with("x-total", "2"));
    let counted = project(&web.url("/"), "total = \"header:x-total\"");
    assert_eq!(counted.sync()["members"], 2);
}

#[test]
fn what_is_no_page_of_members_says_so() {
    let check = |settings: &str, reply: Reply, words: &str| {
        let web = Web::start(move |_| reply.clone());
        let error = fail(&project(&web.url("/a"), settings));
        let error = error.strip_prefix("source `crm`: ").unwrap();
        let error = error.replace(&web.url("/a"), "URL");
        assert!(error.starts_with(words), "{words}: {error}");
    };
    let json = |value: Value| Reply::json(&value);
    let html = Reply::new("text/html; charset=utf-8", "<html>user_1</html>");
    check(
        "",
        Reply::status(401),
        "URL, page 1: HTTP 401 Unauthorized\n\nhint: see `headers`",
    );
    check(
        "",
        Reply::status(404),
        "URL, page 1: HTTP 404 Not Found\n\nhint: see `url`",
    );
    check("", Reply::status(204), "URL, page 1: HTTP 204 No Content");
    check("", Reply::status(304), "URL, page 1: HTTP 304 Not Modified");
    check(
        "",
        html.clone(),
        "URL, page 1: an HTML page came, and no members\n\nhint: ",
    );
    check(
        "format = \"csv\"",
        html,
        "URL, page 1: an HTML page came, and no members\n\nhint: ",
    );
    check(
        "",
        Reply::new("text/plain", "user_1"),
        "URL, page 1: its content type names no format\n\nhint: add format",
    );
    check(
        "format = \"json\"",
        Reply::new("text/plain", "<html>user_1</html>"),
        "URL, page 1: it is no JSON that names members: expected value",
    );
    check(
        "",
        json(json!({ "data": ["user_1"] })),
        "URL, page 1: it has no list at \"\"",
    );
    check(
        "items = \"/data\"",
        json(json!({ "date": [] })),
        "URL, page 1: it has no list at /data",
    );
    check(
        "items = \"/data\"",
        json(json!({ "data": "user_1" })),
        "URL, page 1: it has no list at /data",
    );
    check(
        "items = \"/data\"",
        json(json!({ "data": null })),
        "URL, page 1: it has no list at /data",
    );
    let twice = Reply::new("application/json", "{\"data\":[\"user_1\"],\"data\":[]}");
    check(
        "items = \"/data\"",
        twice,
        "URL, page 1: it has its members twice",
    );
    check(
        "items = \"/data\"",
        Reply::new("text/csv", "user_id\nuser_1\n"),
        "URL, page 1: it is no JSON document",
    );
    check(
        "",
        json(json!([{ "id": "user_1" }])),
        "URL, page 1, row 1: it is no JSON that names members: it has no member `user_id`",
    );
    check(
        "",
        json(json!(["a", { "user_id": 1.5 }])),
        "URL, page 1, row 2: column `user_id` holds a real number",
    );
    check(
        "",
        json(json!(["a", { "user_id": ["user_1"] }])),
        "URL, page 1, row 2: column `user_id` holds a list",
    );
    check(
        "",
        json(json!(["a", true])),
        "URL, page 1, row 2: it is no JSON that names members: invalid type: boolean",
    );
    check(
        "",
        Reply::new("application/json", "[\"a\"] [\"user_1\"]"),
        "URL, page 1: it is no JSON that names members: trailing",
    );
    check(
        "",
        Reply::new("application/json", b"[\"user_1\xff\"]"),
        "URL, page 1, row 1: it is no JSON that names members: invalid unicode",
    );
    check(
        "",
        Reply::new("text/csv", "id\nuser_1\n"),
        "URL, page 1: it has no column `user_id`",
    );
    check(
        "",
        Reply::new("text/csv", "user_id,user_id\nuser_1,b\n"),
        "URL, page 1: it has two columns `user_id`",
    );
    check(
        "",
        Reply::new("text/csv", ""),
        "URL, page 1: the answer is empty",
    );
    check(
        "",
        Reply::new("text/csv; charset=latin-1", "user_id\nuser_1\n"),
        "URL, page 1: it is written as latin-1\n\nhint: ",
    );
    check(
        "",
        Reply::json(&json!(["user_1"])).with("link", "/user_1; rel=next"),
        "URL, page 1: its Link header is no list of links",
    );
    let long = format!("{{\"{}\":1}}", "x".repeat(5 << 20));
    check(
        "items = \"/data\"",
        Reply::new("application/json", long),
        "URL, page 1: it is over 4194304 bytes long",
    );
    let long = format!("[\"a\",\"{}\"]", "x".repeat(5 << 20));
    check(
        "",
        Reply::new("application/json", long),
        "URL, page 1, row 2: it is over 4194304 bytes long",
    );
    check(
        "",
        Reply::new("text/csv", "user_id\nuser_1\n").with("content-encoding", "br"),
        "URL, page 1: it is compressed, and not as gzip",
    );
}

#[test]
fn what_the_pages_declare_must_be_so() {
    let check = |settings: &str, reply: Reply, words: &str| {
        let web = Web::start(move |_| reply.clone());
        let error = fail(&project(&web.url("/a"), settings));
        assert!(error.contains(words), "{words}: {error}");
    };
    let page = |total: Value, cursor: Value| {
        Reply::json(&json!({ "data": ["user_1"], "paging": { "total": total, "cursor": cursor } }))
    };
    check(
        BY_CURSOR,
        page(json!(2), json!(null)),
        "/a: it has 1 members, and declares 2\n\nhint: ",
    );
    check(
        BY_CURSOR,
        page(json!(null), json!(null)),
        "/a: no page declares a total",
    );
    check(
        BY_CURSOR,
        page(json!("many"), json!(null)),
        "page 1: what `total` points to is no count",
    );
    check(
        BY_CURSOR,
        page(json!(-1), json!(null)),
        "page 1: what `total` points to is no count",
    );
    check(
        BY_CURSOR,
        page(json!(1), json!(["user_1"])),
        "page 1: what `next` points to is neither a text nor a whole number",
    );
    check(
        BY_CURSOR,
        page(json!(1), json!("again")),
        "page 2: it leads back to a page that was read before",
    );
    let by_header = "total = \"header:X-Total-Count\"";
    let csv = || Reply::new("text/csv", "user_id\nuser_1\n\"\"\n");
    check(
        by_header,
        csv().with("x-total-count", "3"),
        "it has 2 members, and declares 3",
    );
    check(
        by_header,
        csv().with("x-total-count", "three"),
        "its header `x-total-count` is no count",
    );
    check(by_header, csv(), "no page declares a total");
    let web = Web::start(move |_| csv().with("X-Total-Count", "2"));
    let line = project(&web.url("/"), by_header).sync();
    assert_eq!(
        (&line["members"], &line["skipped_rows"]),
        (&json!(1), &json!(1))
    );

    let next = |link: &'static str| Reply::json(&json!([1])).with("link", link);
    check(
        "",
        next("<http://bob:hunter2@127.0.0.1/user_1#hunter2>; rel=next"),
        "/a, page 1: it leads to another server",
    );
    let web = Web::start(move |request| match &*request.path {
        "/a" => next("</after/user_1#hunter2>; rel=next"),
        _ => Reply::status(404),
    });
    let error = fail(&project(&web.url("/a"), ""));
    assert!(error.contains("/a, page 2: HTTP 404"), "{error}");
    let pages = AtomicUsize::new(0);
    let endless = Web::start(move |_| {
        let cursor = pages.fetch_add(1, Ordering::Relaxed);
        Reply::json(&json!({ "data": [], "paging": { "total": 0, "cursor": cursor } }))
    });
    let error = fail(&project(&endless.url("/a"), BY_CURSOR));
    assert!(
        error.contains("page 1001: there are no members on 1000 pages in a row"),
        "{error}"
    );

    let pages = AtomicUsize::new(0);
    let circle = Web::start(move |_| {
        let cursor = [1, 2, 3, 1, 2, 3][pages.fetch_add(1, Ordering::Relaxed) % 6];
        Reply::json(&json!({ "data": [cursor], "paging": { "total": 9, "cursor": cursor } }))
    });
    let error = fail(&project(&circle.url("/a"), BY_CURSOR));
    assert!(
        error.contains("it leads back to a page that was read before"),
        "{error}"
    );
}

#[test]
fn headers_are_for_the_server_that_was_named() {
    let other = Web::start(|_| Reply::json(&json!(["a"])));
    let elsewhere = other.url("/b?token=hunter2");
    let settings = "headers = { x-api-key = { env = \"CRM_TOKEN\" } }";
    let run = |answer: Box<dyn Fn(&Request) -> Reply + Send + Sync>| {
        let web = Web::start(answer);
        let mut project = project(&web.url("/a"), settings);
        project
            .variables
            .insert("CRM_TOKEN".to_owned(), "hunter2".to_owned());
        project
            .variables
            .insert("RUST_LOG".to_owned(), "trace".to_owned());
        let ran = project.run(&["sync", "--json", "-v"]);
        shows_nothing(&ran);
        let keys = web
            .requests()
            .into_iter()
            .map(|it| it.headers.get("x-api-key").cloned());
        assert!(
            keys.into_iter()
                .all(|key| key.as_deref() == Some("hunter2"))
        );
        ran
    };
    // A redirect is followed without them.
    let to = elsewhere.clone();
    let ran = run(Box::new(move |_| {
        Reply::status(302).with("location", to.clone())
    }));
    assert_eq!(ran.code, 0, "{ran:?}");
    let requests = other.requests();
    assert_eq!((requests.len(), &*requests[0].path), (1, "/b"));
    assert!(!requests[0].headers.contains_key("x-api-key"));
    // Within the server they go along.
    let ran = run(Box::new(|request| match &*request.path {
        "/a" => Reply::status(307).with("location", "/c"),
        _ => Reply::json(&json!(["a"])),
    }));
    assert_eq!(ran.code, 0, "{ran:?}");
    // A further page must be where the first one is.
    let link = format!("<{elsewhere}>; rel=next");
    let ran = run(Box::new(move |_| {
        Reply::json(&json!(["a"])).with("link", link.clone())
    }));
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr
            .contains("it leads to another server as the next page"),
        "{ran:?}"
    );
    assert_eq!(other.requests().len(), 0);
    for (location, words) in [
        (
            "http://example.com/b",
            "it was redirected to http://example.com, which must be https",
        ),
        ("/a", "it was redirected 10 times, and would be again"),
        ("ftp://127.0.0.1/", "which must be an http or https address"),
    ] {
        let ran = run(Box::new(move |_| {
            Reply::status(301).with("location", location)
        }));
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains(words), "{words}: {ran:?}");
    }
}

#[test]
fn a_server_that_says_nothing_is_not_waited_for() {
    let web = Web::start(|_| Reply::silent());
    let project = project(&web.url("/"), "");
    let running = project.start(&["sync"]);
    within(Duration::from_secs(20), "the server is asked", || {
        !web.requests().is_empty()
    });
    let asked = Instant::now();
    running.signal("TERM");
    let ran = running.end();
    assert_eq!(ran.code, 0, "{ran:?}");
    // Far from the minute that it may be silent.
    assert!(asked.elapsed() < Duration::from_secs(20));

    let silent = Web::start(|_| Reply::silent());
    let error = fail(&self::project(&silent.url("/"), "timeout = \"50ms\""));
    assert!(error.contains("page 1: "), "{error}");
    assert_eq!(silent.requests().len(), 5);
}

#[test]
fn check_asks_nobody() {
    let web = Web::start(|_| Reply::status(500));
    let project = project(
        &web.url("/"),
        "headers = { cookie = { env = \"CRM_TOKEN\" } }",
    );
    let mut project = project;
    assert_eq!(project.run(&["check"]).code, 2);
    project
        .variables
        .insert("CRM_TOKEN".to_owned(), "a\nhunter2".to_owned());
    let ran = project.run(&["check"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.stderr
            .contains("header `cookie` has a value that no header can have"),
        "{ran:?}"
    );
    shows_nothing(&ran);
    project
        .variables
        .insert("CRM_TOKEN".to_owned(), "hunter2".to_owned());
    project.succeed(&["check"]);
    assert!(web.requests().is_empty());
}
