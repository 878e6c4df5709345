"""Devices come into the fleet with a claim, and get an identity that broker and gateway know."""

from edgec.fleet.enrolment._access import BrokerAccess, access_of
from edgec.fleet.enrolment._enrolment import Asked, Enrolled, Enrolment, Whereabouts

__all__ = ["Asked", "BrokerAccess", "Enrolled", "Enrolment", "Whereabouts", "access_of"]
