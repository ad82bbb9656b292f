"""Clients and workers in each other's way: every answer is one that a client can expect, and all comes to an end."""

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa

from app.database import engine as db
from app.database.models import Audit, Evaluation
from app.database.states import LIVE_AUDITS
from tests.support.service import BUNDLE, Service, upload
from tests.support.stand_ins.quick import evaluate
from tests.support.worker_service import until
from worker.loop import runner

CLIENTS, ROUNDS, WORKERS = 8, 8, 3


def test_audits_cancels_and_purges_at_once_neither_deadlock_nor_get_stuck(service: Service) -> None:
    models = [service.checkpoint() for _ in range(12)]
    over = threading.Event()

    def client(seed: int) -> Counter[int]:
        choose, answers = random.Random(seed), Counter[int]()
        for _ in range(ROUNDS):
            forget_set = service.post("/v1/forget-sets", files=upload(BUNDLE))
            body = service.audit_body(
                original=choose.choice(models), unlearned=choose.choice(models), forget_set=forget_set.json()["id"]
            )
            audit = service.post("/v1/audits", json=body)
            answers.update([forget_set.status_code, audit.status_code])
            what = choose.random()
            if what < 0.4 and audit.status_code == 202:
                answers[service.post(audit.json()["links"]["cancel"]).status_code] += 1
            elif what < 0.7:
                answers[service.http.delete(f"/v1/forget-sets/{forget_set.json()['id']}").status_code] += 1
        return answers

    def work() -> None:
        while not over.is_set():
            runner.drain(lambda *a, **k: evaluate(*a, **k, pause=0.005))
            over.wait(0.02)

    def all_ended() -> bool:
        with db.reading() as session:
            return not session.scalar(sa.select(sa.func.count()).where(Audit.state.in_(LIVE_AUDITS)))

    with ThreadPoolExecutor(CLIENTS + WORKERS) as pool:
        workers = [pool.submit(work) for _ in range(WORKERS)]
        try:
            answers = sum(pool.map(client, range(CLIENTS)), Counter[int]())
            until(all_ended)
        finally:
            over.set()
        for worker in workers:
            worker.result()
    assert set(answers) <= {200, 201, 202, 204, 409, 410}, answers
    with db.reading() as session:
        assert session.scalar(sa.select(sa.func.max(Evaluation.commits))) == 1
