"""The model answers its examples, refuses what it cannot read, and its configuration has no traps. Run: make test."""

from __future__ import annotations

import os
import sys
import unittest
from pathlib import Path

from marsmith import MarsmithError, Runner
from marsmith.build import build_from_spec
from marsmith.config import ModelSpec, lint_project, load_spec
from marsmith.inputs import read_input
from marsmith.project import Project
from marsmith.runtime import Request

MODEL = "efficientnet_lite0"
PROJECT = Project(Path(__file__).resolve().parents[1])


class ModelTest(unittest.TestCase):
    """The archive in the model store, run as a server's worker runs it."""

    spec: ModelSpec
    runner: Runner

    @classmethod
    def setUpClass(cls) -> None:
        """Build the archive, unless it is what its inputs would give. Its examples are answered, and checked, here."""
        cls.spec = load_spec(PROJECT, MODEL)
        try:
            archive = build_from_spec(
                PROJECT,
                cls.spec,
                weights=os.environ.get("WEIGHTS") or None,
                on_step=lambda step: print(step, file=sys.stderr),
            ).path
        except MarsmithError as error:
            raise AssertionError(f"{MODEL} cannot be built: {error.message}\nTIP: {error.tip}") from None
        cls.runner = cls.enterClassContext(Runner(archive))

    def test_every_example_is_answered(self) -> None:
        """Each example gets a reply of 200."""
        self.assertTrue(self.spec.examples, f"config/models/{MODEL}.yaml names no examples")
        for example in self.spec.examples:
            given = read_input(example.input, PROJECT.root)
            (reply,) = self.runner.run([Request(given.body, given.content_type)])
            self.assertEqual(reply.status, 200, reply.body)

    def test_a_broken_request_does_not_hurt_its_neighbour(self) -> None:
        """In one batch, a request that cannot be read gets a 4xx, and the other one its answer."""
        if self.spec.serving.batch_size < 2:
            self.skipTest("each batch has one request")
        good = read_input(self.spec.examples[0].input, PROJECT.root)
        requests = [Request(b"{", "application/json"), Request(good.body, good.content_type)]
        broken, answered = self.runner.run(requests)
        self.assertIn(broken.status, range(400, 500), broken.body)
        self.assertEqual(answered.status, 200, answered.body)

    def test_the_configuration_has_no_errors(self) -> None:
        """What `marsmith lint` finds holds no error."""
        found = [item.finding for item in lint_project(PROJECT) if item.finding.severity == "error"]
        self.assertEqual([f"{one.file}:{one.line}: {one.message}" for one in found], [])


if __name__ == "__main__":
    unittest.main()
