"""`/metrics` of a real server while it has more to do than it can."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.conftest import QUICK, Client

REQUESTS = 5


def scrape(client: Client) -> dict[str, float]:
    response = client.server.get("/metrics")
    assert response.status_code == 200
    families = text_string_to_metric_families(response.text)
    return {
        sample.name: sample.value
        for family in families
        for sample in family.samples
        if not sample.labels
    }


@pytest.mark.slow("operations")
def test_a_scrape_is_answered_in_the_middle_of_saturation(
    client: Client, small_picture: bytes
) -> None:
    before = scrape(client)
    form = {**QUICK, "prompt": "a blue circle", "image_strength": 0.5}
    seen = []
    with ThreadPoolExecutor(REQUESTS) as pool:
        asked = [
            pool.submit(client.post, picture=small_picture, **form, seed=seed + 1)
            for seed in range(REQUESTS)
        ]
        while not all(one.done() for one in asked):
            seen.append(scrape(client))
    assert [one.result().status_code for one in asked] == [200] * REQUESTS
    fullest = max(seen, key=lambda now: now["img2img:backlog_seconds"])
    assert fullest["img2img:backlog_seconds"] > 0
    assert fullest["img2img:num_requests_running"] + fullest["img2img:num_requests_waiting"] > 1
    after = scrape(client)
    assert after["img2img:images_total"] - before["img2img:images_total"] == REQUESTS
    assert after["img2img:evaluations_total"] > before["img2img:evaluations_total"]
    assert after["img2img:num_requests_running"] == after["img2img:backlog_seconds"] == 0
