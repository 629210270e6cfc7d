"""Our crystals as cctbx objects."""

import cctbx.sgtbx
import numpy as np
from cctbx import crystal, miller
from cctbx.array_family import flex


def group(spacegroup):
    """cctbx space group of a gemmi one, by its Hall symbol, which says everything."""
    return cctbx.sgtbx.space_group(spacegroup.hall)


def miller_set(cell, spacegroup, hkl):
    symmetry = crystal.symmetry(unit_cell=cell.parameters, space_group=group(spacegroup))
    indices = flex.miller_index([tuple(int(i) for i in h) for h in hkl])
    return miller.set(symmetry, indices, anomalous_flag=False)


def amplitude_array(data, f, sigf=None):
    sigmas = None if sigf is None else flex.double(np.ascontiguousarray(sigf))
    array = miller_set(data.cell, data.spacegroup, data.hkl).array(
        data=flex.double(np.ascontiguousarray(f)), sigmas=sigmas
    )
    return array.set_observation_type_xray_amplitude()
