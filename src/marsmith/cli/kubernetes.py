r"""Write manifests with which Kubernetes or KServe runs models of this project.

    marsmith kubernetes efficientnet_lite0 --image registry.example.com/models:1.0 --to deploy/models
    kubectl apply -k deploy/models

    marsmith kubernetes efficientnet_lite0 --image registry.example.com/models:1.0 --to deploy/kserve \
        --kserve --storage pvc://models/efficientnet_lite0

The image is yours: marsmith, and this project as its working folder /srv/models. Without --kserve the archives are in
its model store. The pods run without privileges, with probes on the supervisor's listener, and as many of them as the
requests that wait ask for. The same project and flags give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from marsmith.cli.output import add_json_flag, print_json, say
from marsmith.errors import UsageError
from marsmith.project import find_project


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="models that each pod serves")
    parser.add_argument("--image", required=True, metavar="IMAGE", help="image, with a tag or a digest")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="write the manifests into a folder")
    parser.add_argument("--name", metavar="NAME", help="name of the objects (the models')")
    parser.add_argument("--namespace", default="default", metavar="NS", help="namespace of the objects (%(default)s)")
    parser.add_argument("--cpu", metavar="QUANTITY", help="cores of a pod (a core a thread of its workers, and one)")
    parser.add_argument("--memory", metavar="QUANTITY", help="memory of a pod (512 MiB, and 1 GiB for each worker)")
    parser.add_argument("--gpu", action="store_true", help="give each pod an NVIDIA GPU")
    parser.add_argument("--kserve", action="store_true", help="write a runtime and an inference service for KServe")
    parser.add_argument("--storage", metavar="URI", help="folder of archives for --kserve: pvc://, s3:// or oci://")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Render the manifests, and write them."""
    from marsmith.targets import workload as target
    from marsmith.targets.folder import render_manifests, write_manifests
    from marsmith.targets.settings import pod_files

    if args.kserve != bool(args.storage):
        raise UsageError("--kserve and --storage go together", tip="as in --kserve --storage pvc://models/folder")
    storage = target.check_storage(args.storage) if args.kserve else None
    project = find_project()
    name, namespace = args.name or target.default_name(args.models), target.check_namespace(args.namespace)
    image = target.check_image(args.image)
    models = target.read_models(project, args.models)
    wanted = target.default_resources(models, gpu=args.gpu)
    resources = target.Resources(
        wanted.cpu if args.cpu is None else target.check_quantity(args.cpu, "--cpu"),
        wanted.memory if args.memory is None else target.check_quantity(args.memory, "--memory"),
        wanted.gpus,
    )
    workload = target.Workload(target.check_name(name), namespace, image, models, resources)
    texts = render_manifests(workload, pod_files(project, models), storage)
    write_manifests(args.to, texts)
    if args.json:
        print_json({"folder": str(args.to), "name": workload.name, "namespace": namespace, "written": list(texts)})
    else:
        for file in texts:
            say(f"{args.to / file}")
    return 0
