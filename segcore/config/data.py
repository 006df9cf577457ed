"""The sections that make data: the data set, the split, the crops."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from segcore.config.section import Count, Fraction, InputSize, Long, Name, Section, Side

EMBEDDED = "shapes"
"""The name that only the embedded data set has."""

BYTES_A_PIXEL = 2.5
"""Of a generated picture and its labels, as files."""

MOST_GIGABYTES = 20
"""That the embedded data set may take."""


class TagsFromMasks(Section):
    """The tags of an image are the classes that its mask shows."""

    kind: Literal["masks"]


class TagsFromAnnotations(Section):
    """The tags of an image are the objects that `Annotations/<id>.xml` names."""

    kind: Literal["annotations"]
    difficult: Literal["count", "skip"]
    """Whether objects that are marked as difficult are tags; see `segcore.importers.tags`."""


class TagsFromTable(Section):
    """The tags of an image stand in a CSV file."""

    kind: Literal["csv"]
    file: str
    """Columns image_id,tags; meant from the data set's root or from the project."""


TagsParams = Annotated[TagsFromMasks | TagsFromAnnotations | TagsFromTable, Field(discriminator="kind")]


def _range(value: Any) -> Any:
    """`full`, `measured`, or two numbers: one sentence for all that it can be instead of one for each."""
    if value in ("full", "measured"):
        return value
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(type(one) is int for one in value)
    if is_pair and 0 <= value[0] < value[1] <= 65535:
        return tuple(value)
    raise ValueError("must be full, measured, or [low, high], two whole numbers of 0 to 65535")


SixteenBit = Literal["full", "measured"] | tuple[int, int]
"""Which values of 16-bit pictures become 0 and 255; see `segcore.importers.sixteen_bit`."""


class ShapesParams(Section):
    """The embedded data set; see `segcore.importers.shapes`."""

    layout: Literal["shapes"]
    name: Name
    """Everything that is made of the data set lies in `data/<name>/`."""
    root: str
    """A folder that is there: DVC wants a dependency; the pictures are generated."""
    classes: Annotated[int, Field(ge=2, le=20)]
    train_images: Long
    val_images: Long
    size: InputSize
    max_objects: Annotated[int, Field(ge=1, le=8)]

    @model_validator(mode="after")
    def _fits_on_a_disk(self) -> "ShapesParams":
        gigabytes = (self.train_images + self.val_images) * BYTES_A_PIXEL * self.size**2 / 1e9
        if gigabytes > MOST_GIGABYTES:
            raise ValueError(
                f"train_images {self.train_images:,} and val_images {self.val_images:,} of {self.size} pixels a side "
                f"would take about {gigabytes:,.0f} GB; allowed are {MOST_GIGABYTES}"
            )
        return self

    @model_validator(mode="after")
    def _is_the_embedded_one(self) -> "ShapesParams":
        if self.name != EMBEDDED:
            raise ValueError(f"name: found '{self.name}'; the embedded data set is called '{EMBEDDED}'")
        return self


class OwnPictures(Section):
    """What all data sets on disk have in common, in whatever layout."""

    name: Name
    """Everything that is made of the data set lies in `data/<name>/`."""
    root: str
    """The folder that DVC follows."""
    convert_palette: bool
    """Convert masks that hold colours instead of class indices."""
    sixteen_bit: Annotated[SixteenBit, BeforeValidator(_range)]
    """Which values of pictures of 16 bits are black and white."""
    duplicates: Literal["refuse", "allow"]
    """Whether a validation picture may be a copy of a training picture."""

    @field_validator("root")
    @classmethod
    def _is_spelled_out(cls, root: str) -> str:
        if root.startswith("~"):
            raise ValueError(
                "must be spelled out, as DVC, which follows this folder, knows no ~; on the command line values with ~ "
                """or blanks have quotes of their own: -S 'dataset.root="/home/me/my images"'"""
            )
        return root

    @model_validator(mode="after")
    def _has_a_name_of_its_own(self) -> "OwnPictures":
        if self.name == EMBEDDED:
            raise ValueError(
                f"name: found '{EMBEDDED}', which is the embedded data set's; give yours a name of its own, "
                "as its results go to data/<name>/"
            )
        return self


class VocParams(OwnPictures):
    """A data set in the layout of the VOC devkit."""

    layout: Literal["voc"]
    root: str
    """The folder that holds JPEGImages/."""
    train_list: str
    """ImageSets/Segmentation/<name>.txt"""
    val_list: str
    tags: TagsParams
    sbd_root: str | None
    """A folder with SBD's cls/*.mat, where the masks are not PNGs."""


class ShardsParams(OwnPictures):
    """A data set in WebDataset tars, as `segcore pack` writes them and `segcore index` lists them."""

    layout: Literal["webdataset"]
    root: str
    """The folder with the index, which DVC follows: `shards.json` and `index.parquet`, the tars, if they are here."""
    shards: str | None
    """Where the tars lie, if not beside the index: a folder, or an address such as s3://bucket/folder."""

    @field_validator("root")
    @classmethod
    def _is_a_folder(cls, root: str) -> str:
        if "://" in root:
            raise ValueError(
                "must be a folder of this machine, that of the index, which DVC follows; an address of tars goes to "
                "dataset.shards"
            )
        return root


OnDisk = ShapesParams | VocParams | ShardsParams

DatasetParams = Annotated[OnDisk, Field(discriminator="layout")]


class StrongPerClass(Section):
    """S is so many images of each class (Hong et al. 2015, section 6.1)."""

    kind: Literal["per_class"]
    images: Count


class StrongList(Section):
    """S stands in a text file, one image id a line."""

    kind: Literal["list"]
    file: str


class StrongAll(Section):
    """S is every image that has a mask."""

    kind: Literal["all"]


class TagNoise(Section):
    """Mistakes in the tags of images that go by their tags; measuring never sees them."""

    drop: Fraction
    """Share of the tags that go missing; of an image that would lose its last one, one stays."""
    add: Fraction
    """Share of the tags that an image does not have, but is given."""


class SplitParams(Section):
    """Which training images keep their masks (S) and which are used by their tags (W)."""

    strong: Annotated[StrongPerClass | StrongList | StrongAll, Field(discriminator="kind")]
    weak_includes_strong: bool
    tag_noise: TagNoise | None
    """Mistakes that training sees in the tags of images without masks; null for none."""
    weak_images: Count | None
    """How many images are used by their tags, chosen by the seed; fewer are among more. null: all."""


class GradientEdges(Section):
    """Edges by the gradient of the picture: built in."""

    kind: Literal["gradient"]
    max_fraction: Fraction
    """More edge pixels than this share make EdgeBoxes take minutes; the weakest are dropped."""


class StructuredEdges(Section):
    """Edges by a structured forest, as published."""

    kind: Literal["structured"]
    model: str
    """Path of OpenCV's model file."""
    max_fraction: Fraction


EdgeParams = Annotated[GradientEdges | StructuredEdges, Field(discriminator="kind")]


class CropsParams(Section):
    """Combinatorial crops (Hong et al. 2015, section 5)."""

    per_subset: Count
    max_subsets: Count
    edges: EdgeParams
    min_overlap: Fraction
    """Share of a subset's foreground that a proposal must hold. The paper's sub-images enclose the foreground (section
    5): 1. Anything less is a departure, by which proposals may cut objects; there are more of them then."""
    warp: Side
    """Side of the square that a box is warped to."""
    input_size: InputSize
    """Side of the random square cut from the warped box."""

    @model_validator(mode="after")
    def _fits(self) -> "CropsParams":
        if self.warp < self.input_size:
            raise ValueError(f"warp {self.warp} must be at least input_size {self.input_size}")
        return self
