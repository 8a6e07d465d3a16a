"""The Basic Application Level Confidentiality Profile of DICOM PS3.15 Annex E and its options, as tables.

Rules
- An option is carried out as a whole, or refused with a reason (`REFUSED`).
- Keywords are those of the option's column of Table E.1-1. Where the column says C for attributes that cannot
  be cleaned without reading them, such as AE titles, they stay removed.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any, NamedTuple

from streamsrv.config import SettingsError

TABLE = "dicomfields_2026c"
# The names of the actions of dicom-anonymizer, and the letters of Table E.1-1 by which they are carried out.
ACTIONS = {
    "delete": "X",
    "empty": "Z",
    "replace": "D",
    "replace_UID": "U",
    "empty_or_replace": "D",
    "delete_or_empty": "Z",
    "delete_or_replace": "D",
    "delete_or_empty_or_replace": "D",
    "delete_or_empty_or_replace_UID": "K",
}
BASIC = "basic"
RETAIN_UIDS, RETAIN_DATES, MODIFIED_DATES = "retain-uids", "retain-dates", "retain-modified-dates"
CHARACTERISTICS, DEVICE = "retain-patient-characteristics", "retain-device"
INSTITUTION, SAFE_PRIVATE = "retain-institution", "retain-safe-private"
DESCRIPTORS, STRUCTURED, GRAPHICS = "clean-descriptors", "clean-structured-content", "clean-graphics"


class Option(NamedTuple):
    """Code and meaning (PS3.16 CID 7050), and the keywords of attributes that it keeps, joined by blanks."""

    code: str
    meaning: str
    keeps: str = ""


OPTIONS = {
    RETAIN_UIDS: Option(
        "113110",
        "Retain UIDs Option",
        "AffectedSOPInstanceUID ReferencedPatientSequence ReferencedPerformedProcedureStepSequence "
        "ReferencedStudySequence",
    ),
    RETAIN_DATES: Option("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    MODIFIED_DATES: Option("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    CHARACTERISTICS: Option(
        "113108",
        "Retain Patient Characteristics Option",
        "EthnicGroup PatientAge PatientBodyMassIndex PatientSex PatientSexNeutered PatientSize "
        "PatientSizeCodeSequence PatientWeight PregnancyStatus SelectorASValue SmokingStatus",
    ),
    DEVICE: Option(
        "113109",
        "Retain Device Identity Option",
        "BeamHoldTransitionDateTime CalibrationDate CalibrationDateTime CalibrationTime CassetteID "
        "DateOfInstallation DateOfLastCalibration DateOfLastDetectorCalibration DateOfManufacture "
        "DateTimeOfLastCalibration DetectorID DeviceDescription DeviceLabel DeviceSerialNumber DeviceUID "
        "GantryID GeneratorID LensMake LensModel LensSerialNumber LensSpecification "
        "ManufacturerDeviceClassUID ManufacturerDeviceIdentifier ModifyingDeviceID ModifyingSystem "
        "PerformedStationGeographicLocationCodeSequence PerformedStationName "
        "PerformedStationNameCodeSequence PlateID ScheduledProcedureStepLocation "
        "ScheduledStationGeographicLocationCodeSequence ScheduledStationName "
        "ScheduledStationNameCodeSequence ScheduledStudyLocation SourceManufacturer SourceSerialNumber "
        "StationName TimeOfLastCalibration TimeOfLastDetectorCalibration TransducerIdentificationSequence "
        "TreatmentMachineName UDISequence UniqueDeviceIdentifier XRayDetectorID XRayDetectorLabel "
        "XRaySourceID",
    ),
    INSTITUTION: Option(
        "113112",
        "Retain Institution Identity Option",
        "ClinicalTrialCoordinatingCenterName ClinicalTrialProtocolEthicsCommitteeName ClinicalTrialSiteID "
        "ClinicalTrialSiteName InstitutionAddress InstitutionalDepartmentName "
        "InstitutionalDepartmentTypeCodeSequence InstitutionCodeSequence InstitutionName "
        "SourceOfPreviousValues",
    ),
    SAFE_PRIVATE: Option("113111", "Retain Safe Private Option"),
    DESCRIPTORS: Option("113105", "Clean Descriptors Option"),
    STRUCTURED: Option("113104", "Clean Structured Content Option", "WaveformAnnotationSequence"),
    GRAPHICS: Option("113103", "Clean Graphics Option"),
}
_LOOK = "find its files by a search, and leave them out with --query"
REFUSED = {
    "clean-pixel-data": f"the pixels are copied as they are. Where text is burned in, {_LOOK}",
    "clean-recognizable-visual-features": f"the pixels are copied as they are. Where faces show, {_LOOK}",
}

# Dates and times that no option keeps. All others go by their VR (PS3.15 Table E.1-1, note 4).
NEVER_DATES = frozenset(("PatientBirthDate", "PatientBirthTime", "GPSTimeStamp"))
# Attributes with a date or time of another VR.
TIMES = frozenset(("TimezoneOffsetFromUTC", "CertifiedTimestamp", "FrameOriginTimestamp"))
# Attributes that identify a patient, and that the table does not have.
BEYOND = {
    *("PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar"),
    *("PatientBodyMassIndex", "PatientSizeCodeSequence", "BreedRegistrationNumber"),
    *("RetrieveURL", "RetrieveURI"),  # older files have them as UT
}
# Sequences of content items (PS3.15 E.3.4).
CONTENT = {
    *("ContentSequence", "AcquisitionContextSequence", "SpecimenPreparationSequence"),
    "SpecimenPreparationStepContentItemSequence",
}
CODES = frozenset(
    (
        "AdmittingDiagnosesCodeSequence",
        "ReasonForRequestedProcedureCodeSequence",
        "ReasonForVisitCodeSequence",
    )
)
# Free text of retained patient characteristics (C in that column).
PATIENT_TEXTS = frozenset(("Allergies", "PatientState", "PreMedication", "SpecialNeeds"))
# Free text (the column of the Clean Descriptors Option).
_DESCRIPTIONS = (
    "AcquisitionComments AcquisitionDeviceProcessingDescription AcquisitionFieldOfViewLabel "
    "AcquisitionProtocolDescription AdditionalPatientHistory AdmittingDiagnosesCodeSequence "
    "AdmittingDiagnosesDescription Allergies AnnotationGroupDescription AnnotationGroupLabel "
    "BeamDescription BolusDescription ClinicalTrialSeriesDescription ClinicalTrialTimePointDescription "
    "CommentsOnRadiationDose CommentsOnThePerformedProcedureStep CompensatorDescription "
    "ConceptualVolumeCombinationDescription ConceptualVolumeDescription ContainerDescription "
    "ContrastBolusAgent ContributionDescription DecompositionDescription DerivationDescription "
    "DischargeDiagnosisDescription DisplacementReferenceLabel DoseReferenceDescription EntityDescription "
    "EntityLabel EntityLongLabel EntityName EquipmentFrameOfReferenceDescription "
    "FilterLookupTableDescription FixationDeviceDescription FractionationNotes FractionGroupDescription "
    "FrameComments IdentifyingComments ImageComments ImagingServiceRequestComments Impressions "
    "InterlockDescription InterlockOriginDescription InterpretationDiagnosisDescription "
    "InterpretationText LabelText LongDeviceDescription MedicalAlerts MultienergyAcquisitionDescription "
    "Occupation PatientComments PatientSetupPhotoDescription PatientState "
    "PatientTreatmentPreparationMethodDescription "
    "PatientTreatmentPreparationProcedureParameterDescription PerformedProcedureStepDescription "
    "PositionAcquisitionTemplateDescription PositionAcquisitionTemplateName PrescriptionDescription "
    "PrescriptionNotes PrescriptionNotesSequence PriorTreatmentDoseDescription ProtocolName "
    "PyramidDescription PyramidLabel RadiationDoseIdentificationLabel "
    "RadiationDoseInVivoMeasurementLabel "
    "RadiationGenerationModeDescription RadiationGenerationModeLabel ReasonForOmissionDescription "
    "ReasonForRequestedProcedureCodeSequence ReasonForStudy ReasonForSuperseding "
    "ReasonForTheImagingServiceRequest ReasonForTheRequestedProcedure ReasonForVisit "
    "ReasonForVisitCodeSequence RequestAttributesSequence RequestedContrastAgent "
    "RequestedProcedureComments RequestedProcedureDescription RequestedSeriesDescription "
    "RespiratoryMotionCompensationTechniqueDescription ResultsComments ROIDescription "
    "ROIGenerationDescription ROIName ROIObservationDescription ROIObservationLabel "
    "RTPhysicianIntentNarrative RTPlanDescription RTPlanLabel RTPlanName RTPrescriptionLabel "
    "RTToleranceSetLabel RTTreatmentApproachLabel ScheduledProcedureStepDescription SelectorLOValue "
    "SelectorLTValue SelectorSHValue SelectorSTValue SelectorUTValue SeriesDescription "
    "ServiceEpisodeDescription SetupTechniqueDescription ShieldingDeviceDescription "
    "SpecimenDetailedDescription SpecimenShortDescription StructureSetDescription StructureSetLabel "
    "StructureSetName StudyComments StudyDescription TreatmentPositionGroupLabel TreatmentSite "
    "TreatmentSites TreatmentTechniqueNotes TreatmentToleranceViolationDescription UserContentLabel "
    "UserContentLongLabel VisitComments WaveformFilterDescription"
)
DESCRIPTIONS = frozenset(_DESCRIPTIONS.split())


class Profile(NamedTuple):
    """`words` are the words that stay in descriptions, in lower case."""

    options: frozenset[str]
    words: frozenset[str] = frozenset()

    @property
    def texts(self) -> list[str]:
        """Equal for profiles that give equal files."""
        digest = hashlib.sha256("\n".join(sorted(self.words)).encode()).hexdigest()
        return [BASIC, *sorted(self.options), *([f"words={digest[:8]}"] if self.words else [])]


def profile_of(text: str, words: Path | None = None) -> Profile:
    """The profile `basic,retain-dates,...`; `words` is a file of words. Raises SettingsError."""
    profile, *names = [each.strip() for each in text.split(",")]
    if profile != BASIC:
        raise SettingsError(f"--deidentify: the profile {profile!r} is not {BASIC}")
    for name in names:
        if name in REFUSED:
            raise SettingsError(f"--deidentify: {name} is not possible: {REFUSED[name]}")
        if name not in OPTIONS:
            raise SettingsError(f"--deidentify: {name!r} is none of {', '.join(OPTIONS)}")
    options = frozenset(names)
    if {RETAIN_DATES, MODIFIED_DATES} <= options:
        raise SettingsError(f"--deidentify: {RETAIN_DATES} and {MODIFIED_DATES} exclude each other")
    if (DESCRIPTORS in options) != (words is not None):
        raise SettingsError(f"--deidentify: {DESCRIPTORS} and --keep-words FILE go together")
    return Profile(options, _words_of(words) if words else frozenset())


def _words_of(path: Path) -> frozenset[str]:
    """One or several words a line; a line may be a comment behind `#`."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as fault:
        raise SettingsError(f"--keep-words: {path} cannot be read: {fault}") from fault
    words = frozenset(word.casefold() for line in lines for word in line.partition("#")[0].split())
    if not words:
        raise SettingsError(f"--keep-words: {path} has no word")
    return words


def table_of_actions() -> dict[tuple[int, ...], str]:
    """(group, element) -> letter; (group, element, mask, mask) for repeating groups. Raises SettingsError if
    the package is not installed."""
    try:
        library: Any = importlib.import_module("dicomanonymizer.simpledicomanonymizer")
    except ImportError as error:
        raise SettingsError(
            f"--deidentify needs the package {error.name}: install streamsrv[deidentify]"
        ) from error
    return {tag: ACTIONS[action.__name__] for tag, action in library.initialize_actions(TABLE).items()}
