# SPDX-License-Identifier: Apache-2.0
"""The 33 behaviours that make this GKE's contract, as data: one sentence each, in our own words.

A test is marked ``contract(number, ...)`` with those that it shows. Where the machine has no such
thing (a second CPU model, a GPU), ``injected="..."`` names the host facts that the test puts in
their place; the table then says so.
"""

from typing import Final

BEHAVIOURS: Final = {
    1: "Discovery lists the five kinds of the group under GKE's plurals and short names.",
    2: "A storage config belongs to the cluster, every other kind to a namespace, and each kind "
    "has a status of its own.",
    3: "Malformed buckets, paths, durations and enum values are refused; what is left out gets "
    "GKE's default.",
    4: "A policy may name any of the four trigger types and is usable with each.",
    5: "A trigger's answer carries its snapshot as an object that has a name.",
    6: "kubectl prints GKE's columns under the short names, and finds the snapshots of a policy "
    "by a field selector.",
    7: "A manual trigger for a governed Pod makes one PodSnapshot: a UUID as its name, with "
    "policy, origin, trigger, group labels and finalizer.",
    8: "A trigger that says Complete has named its snapshot by then; the upload may still go on.",
    9: "A snapshot is restored from only once Ready is True, and the reason is then "
    "AllSnapshotsAvailable.",
    10: "A save that cannot be ends as Failed with its cause on the trigger; none hangs.",
    11: "A Pod has one open trigger at a time, and an answered trigger is never carried out again.",
    12: "Under workload a snapshot waits from the Pod's start and a written 1 fills it; a reader "
    "learns whether it was saved, is restored, or the save failed and it just goes on.",
    13: "Under manual a write to the checkpoint file saves nothing.",
    14: "With stop a Pod ends as Succeeded with its save; with resume it goes on in its memory.",
    15: "rootfs-only gives the files back to fresh processes, whatever the new Pod's spec is.",
    16: "A save and a restore are each told by a Normal event GKEPodSnapshotting on the Pod, in "
    "the words that clients look for.",
    17: "The path in a snapshot's status is where its bytes are.",
    18: "A new Pod goes on from the newest usable snapshot of its distilled spec: env, resources, "
    "probes and node selector may differ; image, command, args, mounts and security context may "
    "not.",
    19: "ps-name means that very snapshot; one that is not ready, elsewhere or of another spec is "
    "a cold start, and so is an empty name.",
    20: "Where a policy groups by labels, no Pod is restored from another group.",
    21: "A restored Pod has its own address, name, clock and environment; memory, listening and "
    "Unix sockets are kept, connections to the outside are closed.",
    22: "PodRestored is True and names the snapshot, no later than Ready; a Pod that simply starts "
    "cold has no such condition.",
    23: "A node that cannot run the image starts the Pod cold, with a Warning that says so, and "
    "without a loop.",
    24: "A restore moves the snapshot's lastAccessTime.",
    25: "Many Pods restore from one snapshot at once, and no running Pod is touched.",
    26: "lastAccessTimeout removes what nobody restored from for so long; without it nothing goes.",
    27: "Each exact set of group labels keeps its newest n, and the time limit counts beside it.",
    28: "A deleted PodSnapshot takes its bytes along and is gone in the time that clients wait, "
    "even if its node is gone; who watches sees DELETED.",
    29: "Without its policy nothing more is saved or restored, running Pods run on, and a snapshot "
    "can still be deleted with its bytes.",
    30: "Users delete PodSnapshots, but neither make nor change them.",
    31: "Clients written for GKE work as they are: same calls, same conditions in the same order, "
    "in time.",
    32: "kubectl wait returns for triggers and for snapshots.",
    33: "Failed and Error are said only of what never recovers.",
}
