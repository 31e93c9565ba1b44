"""Envoy's files as they are rendered, and the tokens in them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.client.key_file import Token
from marsmith.config.certificate import make_pair, write_pair
from marsmith.config.server_config import ListenAddress, addresses
from marsmith.errors import FrontError
from marsmith.run_state import Backend
from marsmith.server.front.bootstrap import Listening, bootstrap
from marsmith.server.front.clusters import Upstream, render
from marsmith.server.front.ports import private_config, shared_with_inference
from marsmith.server.front.resources import render_resources
from marsmith.server.front.tokens import Tokens, parse_tokens, render_tokens, token_filter
from marsmith.server.front.traffic import Traffic
from marsmith.server.front.upstream import current_upstream, keep_upstream, upstream_of
from support.golden import golden, short

FOLDER = Path("/project/.marsmith/run/front")
BACKEND = Backend("http://127.0.0.1:10001", "127.0.0.1:10002")
METRICS = ListenAddress("front_metrics_port", "http", "127.0.0.1", 8083)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
INSTANTS = st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC))
TOKENS = st.builds(
    Tokens,
    st.none() | st.builds(Token, WORDS, st.none() | INSTANTS),
    st.dictionaries(WORDS, INSTANTS, max_size=4),
    st.booleans(),
)


def listening(**config: str) -> Listening:
    return Listening.of(config, METRICS)


def clusters_of(upstream: Upstream) -> dict[str, Any]:
    return {each["name"]: each for each in render(upstream, Traffic())}


def test_the_bootstrap_is_the_golden_one() -> None:
    golden("bootstrap.json", short(bootstrap(FOLDER, listening(), Upstream(1, 2, 16_777_216))))


def test_tls_ends_at_the_listeners_that_the_server_config_names(tmp_path: Path) -> None:
    key, certificate = write_pair(tmp_path, make_pair())
    config = {"inference_address": "https://0.0.0.0:8443", "enable_grpc_ssl": "true"}
    config |= {"private_key_file": str(key), "certificate_file": str(certificate)}
    rest, grpc, _, metrics = bootstrap(FOLDER, listening(**config), Upstream(1, 2))["static_resources"]["listeners"]
    for listener, protocol in ((rest, "http/1.1"), (grpc, "h2")):
        chain, refusal = listener["filter_chains"]
        context = chain["transport_socket"]["typed_config"]["common_tls_context"]
        assert context["alpn_protocols"] == [protocol]
        [pair] = context["tls_certificates"]
        assert pair["certificate_chain"]["filename"] == str(certificate)
        assert pair["private_key"]["filename"] == str(key)
        # Before the routes, because nothing may be read that was sent in the clear.
        assert refusal["filter_chain_match"] == {"transport_protocol": "raw_buffer"}
    assert "transport_socket" not in metrics["filter_chains"][0]
    assert rest["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 8443}
    # Behind the front REST has no TLS; gRPC has, because TorchServe switches both of its gRPC APIs at once.
    by_name = clusters_of(upstream_of(FOLDER, config, BACKEND))
    assert "transport_socket" not in by_name["stable/rest"]
    to_grpc = by_name["stable/grpc"]
    context = to_grpc["transport_socket"]["typed_config"]["common_tls_context"]
    assert len(context["validation_context"]["verify_certificate_hash"][0]) == 64


def test_a_host_that_nobody_knows_is_named() -> None:
    with pytest.raises(FrontError, match=r"cannot listen at nowhere\.invalid:80 \(inference_address\)"):
        bootstrap(FOLDER, listening(inference_address="http://nowhere.invalid"), Upstream(1, 2))


def test_an_address_that_is_a_name_is_resolved_because_envoy_takes_only_numbers() -> None:
    rendered = bootstrap(FOLDER, listening(inference_address="http://localhost:8080"), Upstream(1, 2))
    rest = rendered["static_resources"]["listeners"][0]
    assert rest["address"]["socket_address"]["address"] in {"127.0.0.1", "::1"}


def test_while_torchserve_is_away_its_address_is_one_that_no_other_process_can_take() -> None:
    for cluster in clusters_of(upstream_of(FOLDER, {}, None)).values():
        [place] = cluster["load_assignment"]["endpoints"]
        assert place["lb_endpoints"][0]["endpoint"]["address"] == {"pipe": {"path": "nobody.sock"}}


def test_who_changes_the_routes_finds_the_torchserve_that_the_front_leads_to(tmp_path: Path) -> None:
    upstream = upstream_of(tmp_path, {"max_request_size": "16777216"}, BACKEND)
    assert (upstream.rest_port, upstream.grpc_port, upstream.max_request_bytes) == (10001, 10002, 16_777_216)
    with pytest.raises(FrontError, match="runs without the front"):
        current_upstream(tmp_path)
    keep_upstream(tmp_path, upstream)
    assert current_upstream(tmp_path) == upstream
    (tmp_path / "upstream.json").write_text("{}")
    with pytest.raises(FrontError, match=r"upstream\.json is damaged"):
        current_upstream(tmp_path)


def test_equal_content_has_an_equal_version_and_other_content_another_one() -> None:
    text, version = render_resources([{"name": "a"}])
    assert json.loads(text) == {"version_info": version, "resources": [{"name": "a"}]}
    assert render_resources([{"name": "a"}])[1] == version != render_resources([{"name": "b"}])[1]


def test_behind_the_front_only_the_inference_api_moves() -> None:
    public = {"management_address": "http://127.0.0.1:8081", "enable_envvars_config": "true"}
    where = addresses(private_config(public, BACKEND))
    assert (where.inference.url, where.grpc_inference.authority) == ("http://127.0.0.1:10001", "127.0.0.1:10002")
    assert [each.port for each in (where.management, where.metrics, where.grpc_management)] == [8081, 8082, 7071]
    assert private_config(public, BACKEND)["enable_envvars_config"] == "false"


def test_apis_that_share_the_port_of_the_front_are_found() -> None:
    one = {"inference_address": "http://127.0.0.1:8080", "management_address": "http://127.0.0.1:8080"}
    assert [each.key for each in shared_with_inference(addresses(one))] == ["management_address"]
    assert shared_with_inference(addresses({})) == []


def token(value: str, minutes: float = 60) -> Token:
    return Token(value, NOW + timedelta(minutes=minutes))


def test_a_token_outlives_restarts_until_it_expires() -> None:
    first = Tokens().after_restart(token("one", 30), NOW)
    second = first.after_restart(token("two", 60), NOW + timedelta(minutes=10))
    assert second.current == token("two")
    assert second.earlier == {"one": NOW + timedelta(minutes=30)}
    third = second.after_restart(token("three", 90), NOW + timedelta(minutes=31))
    assert third.earlier == {"two": NOW + timedelta(minutes=60)}


def test_a_token_that_was_replaced_on_request_is_invalid_with_all_before_it() -> None:
    both = Tokens().after_restart(token("one"), NOW).after_restart(token("two"), NOW)
    assert both.after_renewal(token("three"), NOW) == Tokens(token("three"))


def test_a_token_that_was_renewed_because_it_was_due_keeps_its_last_seconds() -> None:
    known = Tokens().after_restart(token("one"), NOW)
    late = NOW + timedelta(minutes=60, seconds=-3)
    assert known.after_renewal(token("two", 120), late).earlier == {"one": NOW + timedelta(minutes=60)}


@given(TOKENS)
def test_tokens_are_what_they_were_after_a_restart_of_the_supervisor(tokens: Tokens) -> None:
    assert parse_tokens(render_tokens(tokens)) == tokens


def test_a_platform_that_lets_only_its_users_in_gets_the_current_token_for_each_request() -> None:
    token = Token("new", NOW + timedelta(hours=1))
    for tokens in (Tokens(token, is_open=True), Tokens(None, is_open=True).after_restart(token, NOW)):
        script = token_filter(tokens)["typed_config"]["default_source_code"]["inline_string"]
        assert "local ALWAYS = true\n" in script


@pytest.mark.parametrize("tokens", [Tokens(Token("one")), Tokens(is_open=True)])
def test_where_no_token_can_be_replaced_no_request_is_looked_at(tokens: Tokens) -> None:
    """Clients have the current token, or there is none yet."""
    assert "envoy_on_request" not in token_filter(tokens)["typed_config"]["default_source_code"]["inline_string"]


def test_a_token_cannot_end_its_text_in_the_filter() -> None:
    script = token_filter(Tokens(Token('"..os.exit()..\\"'), {"old": NOW}))["typed_config"]["default_source_code"][
        "inline_string"
    ]
    assert script.startswith('local CURRENT = "\\034\\046\\046os\\046exit\\040\\041\\046\\046\\092\\034"\n')
