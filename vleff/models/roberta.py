"""RoBERTa and its copies XLM-RoBERTa and CamemBERT: BERT's layer with other embeddings."""

from transformers.models.camembert.modeling_camembert import CamembertEncoder, CamembertLayer, CamembertModel
from transformers.models.roberta.modeling_roberta import RobertaEncoder, RobertaLayer, RobertaModel
from transformers.models.xlm_roberta.modeling_xlm_roberta import (
    XLMRobertaEncoder,
    XLMRobertaLayer,
    XLMRobertaModel,
)

from vleff.models.bert import BertLikeEncoder, BertLikeLayer
from vleff.models.registry import Adapter, register


class PackedRobertaLayer(BertLikeLayer, RobertaLayer):
    pass


class PackedRobertaEncoder(BertLikeEncoder, RobertaEncoder):
    pass


class PackedXLMRobertaLayer(BertLikeLayer, XLMRobertaLayer):
    pass


class PackedXLMRobertaEncoder(BertLikeEncoder, XLMRobertaEncoder):
    pass


class PackedCamembertLayer(BertLikeLayer, CamembertLayer):
    pass


class PackedCamembertEncoder(BertLikeEncoder, CamembertEncoder):
    pass


register(Adapter("RoBERTa", RobertaModel, {RobertaEncoder: PackedRobertaEncoder, RobertaLayer: PackedRobertaLayer}))
register(
    Adapter(
        "XLM-RoBERTa",
        XLMRobertaModel,
        {XLMRobertaEncoder: PackedXLMRobertaEncoder, XLMRobertaLayer: PackedXLMRobertaLayer},
    )
)
register(
    Adapter(
        "CamemBERT",
        CamembertModel,
        {CamembertEncoder: PackedCamembertEncoder, CamembertLayer: PackedCamembertLayer},
    )
)
