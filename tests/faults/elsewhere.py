"""Faults that need another host than a guest on a network of a box, and the tests of them."""

from __future__ import annotations

ELSEWHERE = {
    "integration/test_libvirtd.py": {
        "libvirtd ends for want of clients": "test_an_idle_libvirtd_is_not_kept_awake",
        "libvirt may only be read": "test_a_libvirt_that_may_only_be_read_is_still_watched",
        "libvirt is long in starting a network": (
            "test_a_network_that_is_long_in_starting_is_no_fault"
        ),
    },
    "integration/test_hostile.py": {
        "look-alike signals": "test_look_alike_signals_are_not_heard",
        "six users at once who do their worst": "test_vnetd_heals_while_many_do_their_worst",
    },
    "integration/test_polkit.py": {
        "two admins edit the policy at the same time": (
            "test_of_two_admins_who_edit_the_policy_the_second_is_told"
        ),
        "polkit is gone": "test_without_polkit_root_alone_may",
        "a caller leaves while a password is asked for": (
            "test_a_question_ends_when_the_caller_leaves"
        ),
    },
    "integration/test_crashes.py": {
        "vnetd is killed at a hundred random moments": "test_vnetd_killed_at_random_moments",
    },
    "integration/test_hostbridges.py": {
        "another tool leads a host bridge": "test_nothing_is_written_where_another_tool_leads",
        "an uplink comes late": "test_late_uplink_completes_the_bridge",
    },
    "integration/test_link_storm.py": {
        "2,000 link events a second": (
            "test_a_storm_of_foreign_links_hides_no_fault_and_costs_no_pass"
        ),
    },
    "system/test_sandbox.py": {
        "libvirt's polkit driver lets vnetd do little": (
            "test_the_hardened_recipe_leaves_it_networks_and_nothing_else"
        ),
    },
    "system/test_people.py": {
        "a hundred passwords are asked for, and none is given": (
            "test_questions_that_nobody_answers_keep_nobody_waiting"
        ),
    },
    "system/test_package.py": {
        "vnetd is upgraded in the middle of a repair": "test_ends_in_the_middle_of_a_repair",
    },
    "system/test_boot.py": {
        "reboots": "test_reboot",
        "power cuts": "test_power_cut_in_the_middle_of_an_apply",
        "boots with libvirtd masked, uplinks late, ports taken, rules flushed": "test_reboot",
        "a first boot without a policy": "test_a_boot_without_a_policy_leaves_all_to_libvirt",
    },
    "system/emulated/test_time.py": {
        "the clock is set by years": "test_a_clock_that_is_set_costs_one_line_and_one_look",
        "the whole machine stands still": "test_a_machine_that_stood_still_goes_on",
    },
}
"""File in tests/ → fault → test."""
