"""What only torch needs: imported with `anynorm.torch`, except `state` and `pytrees`, which import no torch."""
