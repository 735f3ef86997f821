"""The program of the fast path, in LLVM's language: arguments of Python -> one task -> a kernel.

It takes x, a residual, y, their total, weight and bias, looks at each, and compares what it sees with what a kernel
needs. Whatever is out of the ordinary is left to the long way, and so are all messages.

In the text ``$name`` is the address of a field of the record, a word in capitals a number, and ``require %condition``
goes on where that holds, and else to the label ``misfit``.
"""

from __future__ import annotations

import ctypes
import re

from anynorm._kernels.cpu.fast_path import views
from anynorm._kernels.cpu.fast_path.record import IN_FLOAT64, KINDS, Record
from anynorm._kernels.cpu.kernels.task import Task
from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES, CHUNK, LAYER, RMS, SCALE

_SLOTS = ("x", "residual", "y", "total", "weight", "bias")
_WORDS = {
    "RECORD_NBYTES": ctypes.sizeof(Record), "TASK_NBYTES": ctypes.sizeof(Task), "IN_FLOAT64": IN_FLOAT64, "KINDS": KINDS,
    "SLOT_NBYTES": views.SLOT_NBYTES, "SLOTS_NBYTES": len(_SLOTS) * views.SLOT_NBYTES,
    "LAYER": LAYER, "RMS": RMS, "SCALE": SCALE, "CHUNK": CHUNK, "CACHE_LINE_NBYTES": CACHE_LINE_NBYTES,
    "FEW_ROWS": 4,  # for which it does not pay to widen the parameters beforehand
    "INFINITY": "0x7FF0000000000000",
}  # fmt: skip
# What a task is filled with; the other fields are 0.
_FILLED = {
    "features": "%features", "rows": "%rows", "eps": "%eps", "scale": "%scale",
    "weight_offset": "%offset", "x": "%place_x", "residual": "%place_residual", "y": "%place_y", "total": "%place_total",
    "weight": "%weight", "weight_code": "%weight_code", "bias": "%bias", "bias_code": "%bias_code",
    "direct": "%direct",
}  # fmt: skip

_HEAD = """
@record = internal global [RECORD_NBYTES x i8] zeroinitializer, align 8
@dtype = internal constant [6 x i8] c"dtype\\00"
declare double @llvm.fabs.f64(double)

; Where the record is, in which the functions are then.
define ptr @fast_path() {
  store ptr @normalize_arrays, ptr $normalize_arrays
  store ptr @normalize_tensors, ptr $normalize_tensors
  ret ptr @record
}

; As builtin functions of Python, called with: rule, x, residual, y, total, weight, bias, eps, offset.
define internal ptr @normalize_arrays(ptr %self, ptr %arguments, i64 %count) {
  %make = load ptr, ptr $empty_like_array
  %result = call ptr @normalize(ptr %arguments, ptr @look_at_array, ptr %make)
  ret ptr %result
}

define internal ptr @normalize_tensors(ptr %self, ptr %arguments, i64 %count) {
  %make = load ptr, ptr $empty_like_tensor
  %result = call ptr @normalize(ptr %arguments, ptr @look_at_tensor, ptr %make)
  ret ptr %result
}

define internal i64 @itemsize(i64 %code) {
  %power = shl i64 1, %code
  %is_wide = icmp ugt i64 %power, 2
  %itemsize = select i1 %is_wide, i64 %power, i64 2
  ret i64 %itemsize
}

; Whether two pieces of memory share nothing; one at 0 is none.
define internal i1 @are_apart(i64 %a, i64 %a_nbytes, i64 %b, i64 %b_nbytes) {
  %a_end = add i64 %a, %a_nbytes
  %b_end = add i64 %b, %b_nbytes
  %is_before = icmp ule i64 %a_end, %b
  %is_behind = icmp ule i64 %b_end, %a
  %is_none = icmp eq i64 %b, 0
  %is_beside = or i1 %is_before, %is_behind
  %apart = or i1 %is_beside, %is_none
  ret i1 %apart
}

; Whether a result shares nothing with an array of its size, or is that.
define internal i1 @may_be_written(i64 %out, i64 %nbytes, i64 %array, i64 %array_nbytes) {
  %is_same = icmp eq i64 %out, %array
  %apart = call i1 @are_apart(i64 %out, i64 %nbytes, i64 %array, i64 %nbytes)
  %may = or i1 %is_same, %apart
  ret i1 %may
}

; Whether two arrays have one dtype and one shape.
define internal i1 @are_alike(ptr %a, ptr %b) {
  %a_code_at = getelementptr i8, ptr %a, i64 CODE
  %a_code = load i64, ptr %a_code_at
  %b_code_at = getelementptr i8, ptr %b, i64 CODE
  %b_code = load i64, ptr %b_code_at
  %same_code = icmp eq i64 %a_code, %b_code
  require %same_code
  %a_axes_at = getelementptr i8, ptr %a, i64 AXES
  %a_axes = load i64, ptr %a_axes_at
  %b_axes_at = getelementptr i8, ptr %b, i64 AXES
  %b_axes = load i64, ptr %b_axes_at
  %same_axes = icmp eq i64 %a_axes, %b_axes
  require %same_axes
  %a_lengths_at = getelementptr i8, ptr %a, i64 LENGTHS
  %a_lengths = load ptr, ptr %a_lengths_at
  %b_lengths_at = getelementptr i8, ptr %b, i64 LENGTHS
  %b_lengths = load ptr, ptr %b_lengths_at
  br label %axis
axis:
  %i = phi i64 [ 0, %same_axes.holds ], [ %next, %one ]
  %is_over = icmp eq i64 %i, %a_axes
  br i1 %is_over, label %alike, label %one
one:
  %a_length_at = getelementptr i64, ptr %a_lengths, i64 %i
  %a_length = load i64, ptr %a_length_at
  %b_length_at = getelementptr i64, ptr %b_lengths, i64 %i
  %b_length = load i64, ptr %b_length_at
  %next = add i64 %i, 1
  %same_length = icmp eq i64 %a_length, %b_length
  br i1 %same_length, label %axis, label %misfit
alike:
  ret i1 true
misfit:
  ret i1 false
}

; Whether an array holds one number for each feature.
define internal i1 @is_parameter(ptr %slot, i64 %features) {
  %axes_at = getelementptr i8, ptr %slot, i64 AXES
  %axes = load i64, ptr %axes_at
  %is_flat = icmp eq i64 %axes, 1
  require %is_flat
  %lengths_at = getelementptr i8, ptr %slot, i64 LENGTHS
  %lengths = load ptr, ptr %lengths_at
  %length = load i64, ptr %lengths
  %is_one = icmp eq i64 %length, %features
  ret i1 %is_one
misfit:
  ret i1 false
}

; The number in an array without axes; NaN where there are any.
define internal double @number_in(ptr %slot) {
  %axes_at = getelementptr i8, ptr %slot, i64 AXES
  %axes = load i64, ptr %axes_at
  %is_number = icmp eq i64 %axes, 0
  require %is_number
  %place_at = getelementptr i8, ptr %slot, i64 PLACE
  %place = load ptr, ptr %place_at
  %code_at = getelementptr i8, ptr %slot, i64 CODE
  %code = load i64, ptr %code_at
  switch i64 %code, label %double [ i64 0, label %half i64 1, label %bfloat i64 2, label %single ]
half:
  %of_half = load half, ptr %place, align 1
  %half_number = fpext half %of_half to double
  ret double %half_number
bfloat:
  %bits = load i16, ptr %place, align 1
  %low = zext i16 %bits to i32
  %high = shl i32 %low, 16
  %of_bfloat = bitcast i32 %high to float
  %bfloat_number = fpext float %of_bfloat to double
  ret double %bfloat_number
single:
  %of_single = load float, ptr %place, align 1
  %single_number = fpext float %of_single to double
  ret double %single_number
double:
  %double_number = load double, ptr %place, align 1
  ret double %double_number
misfit:
  ret double 0x7FF8000000000000
}
"""

_NORMALIZE = """
define internal ptr @normalize(ptr %arguments, ptr %look, ptr %make) {
  %slots = alloca [SLOTS_NBYTES x i8], align 16
  %task = alloca [TASK_NBYTES x i8], align 16
  %made_y = alloca ptr, align 8
  %made_total = alloca ptr, align 8
  store ptr null, ptr %made_y
  store ptr null, ptr %made_total
  SLOTS
  ARGUMENTS
  %none = load ptr, ptr $none
  %float = load ptr, ptr $float
  %drop = load ptr, ptr $Py_DecRef
  %keep = load ptr, ptr $Py_IncRef
  %double_of = load ptr, ptr $PyFloat_AsDouble

  %is_eps = call i1 @is_of(ptr %eps_object, ptr %float)
  require %is_eps
  %eps = call double %double_of(ptr %eps_object)
  %is_least = fcmp oge double %eps, 0.0
  require %is_least
  %is_finite = fcmp olt double %eps, INFINITY
  require %is_finite
  %is_offset = call i1 @is_of(ptr %offset_object, ptr %float)
  require %is_offset
  %offset = call double %double_of(ptr %offset_object)
  %size_of_offset = call double @llvm.fabs.f64(double %offset)
  %is_offset_finite = fcmp olt double %size_of_offset, INFINITY
  require %is_offset_finite
  %has_offset = fcmp une double %offset, 0.0
  %layer_norm = load ptr, ptr $layer_norm
  %is_layer = icmp eq ptr %rule_object, %layer_norm
  %scale_norm = load ptr, ptr $scale_norm
  %is_scale = icmp eq ptr %rule_object, %scale_norm
  %layer = select i1 %is_layer, i64 LAYER, i64 RMS
  %rule = select i1 %is_scale, i64 SCALE, i64 %layer

  %sees_x = call i1 %look(ptr %x_object, ptr %slot_x, i32 0)
  require %sees_x
  %axes_at = getelementptr i8, ptr %slot_x, i64 AXES
  %axes = load i64, ptr %axes_at
  %has_axes = icmp ne i64 %axes, 0
  require %has_axes
  %lengths_at = getelementptr i8, ptr %slot_x, i64 LENGTHS
  %lengths = load ptr, ptr %lengths_at
  %code_at = getelementptr i8, ptr %slot_x, i64 CODE
  %code = load i64, ptr %code_at
  %last = sub i64 %axes, 1
  %features_at = getelementptr i64, ptr %lengths, i64 %last
  %features = load i64, ptr %features_at
  br label %axis
axis:
  %i = phi i64 [ 0, %has_axes.holds ], [ %next, %axis ]
  %before = phi i64 [ 1, %has_axes.holds ], [ %size, %axis ]
  %length_at = getelementptr i64, ptr %lengths, i64 %i
  %length = load i64, ptr %length_at
  %size = mul i64 %before, %length
  %next = add i64 %i, 1
  %is_over = icmp eq i64 %next, %axes
  br i1 %is_over, label %sized, label %axis
sized:
  %has_elements = icmp ne i64 %size, 0
  require %has_elements
  %itemsize = call i64 @itemsize(i64 %code)
  %nbytes = mul i64 %size, %itemsize
  %most_nbytes = load i64, ptr $most_nbytes
  %is_small = icmp ule i64 %nbytes, %most_nbytes
  require %is_small
  %rows = udiv i64 %size, %features

  %lacks_weight = icmp eq ptr %weight_object, %none
  br i1 %lacks_weight, label %no_weight, label %some_weight
no_weight:
  %lacks_offset = xor i1 %has_offset, true
  require %lacks_offset
  br label %weighted
some_weight:
  br i1 %is_scale, label %scale_given, label %weight_given
weight_given:
  %sees_weight = call i1 %look(ptr %weight_object, ptr %slot_weight, i32 0)
  require %sees_weight
  %is_weight = call i1 @is_parameter(ptr %slot_weight, i64 %features)
  require %is_weight
  %weight_at = getelementptr i8, ptr %slot_weight, i64 PLACE
  %own_weight = load i64, ptr %weight_at
  %own_weight_code_at = getelementptr i8, ptr %slot_weight, i64 CODE
  %own_weight_code = load i64, ptr %own_weight_code_at
  br label %weighted
scale_given:
  %is_number = call i1 @is_of(ptr %weight_object, ptr %float)
  br i1 %is_number, label %scale_number, label %scale_array
scale_number:
  %number = call double %double_of(ptr %weight_object)
  br label %scaled
scale_array:
  %sees_scale = call i1 %look(ptr %weight_object, ptr %slot_weight, i32 0)
  require %sees_scale
  %in_array = call double @number_in(ptr %slot_weight)
  br label %scaled
scaled:
  %own_scale = phi double [ %number, %scale_number ], [ %in_array, %sees_scale.holds ]
  %size_of_scale = call double @llvm.fabs.f64(double %own_scale)
  %is_scale_finite = fcmp olt double %size_of_scale, INFINITY
  require %is_scale_finite
  br label %weighted
weighted:
  %scale = phi double [ 1.0, %lacks_offset.holds ], [ 1.0, %is_weight.holds ], [ %own_scale, %is_scale_finite.holds ]
  %weight = phi i64 [ 0, %lacks_offset.holds ], [ %own_weight, %is_weight.holds ], [ 0, %is_scale_finite.holds ]
  %weight_code = phi i64 [ %code, %lacks_offset.holds ], [ %own_weight_code, %is_weight.holds ],
                         [ %code, %is_scale_finite.holds ]
  %lacks_bias = icmp eq ptr %bias_object, %none
  br i1 %lacks_bias, label %biased, label %some_bias
some_bias:
  %sees_bias = call i1 %look(ptr %bias_object, ptr %slot_bias, i32 0)
  require %sees_bias
  %is_bias = call i1 @is_parameter(ptr %slot_bias, i64 %features)
  require %is_bias
  %bias_at = getelementptr i8, ptr %slot_bias, i64 PLACE
  %own_bias = load i64, ptr %bias_at
  %own_bias_code_at = getelementptr i8, ptr %slot_bias, i64 CODE
  %own_bias_code = load i64, ptr %own_bias_code_at
  br label %biased
biased:
  %bias = phi i64 [ 0, %weighted ], [ %own_bias, %is_bias.holds ]
  %bias_code = phi i64 [ %code, %weighted ], [ %own_bias_code, %is_bias.holds ]

  ; Pairs of float32 are formed of factors alone: what float32 does not hold of a parameter needs float64.
  %is_single = icmp eq i64 %code, 2
  %is_weight_wide = icmp eq i64 %weight_code, 3
  %is_bias_wide = icmp eq i64 %bias_code, 3
  %is_one_wide = or i1 %is_weight_wide, %is_bias_wide
  %is_wide = or i1 %is_one_wide, %has_offset
  %needs_float64 = and i1 %is_single, %is_wide
  %kind = select i1 %needs_float64, i64 IN_FLOAT64, i64 %code
  %lacks_residual = icmp eq ptr %residual_object, %none
  %is_sum = select i1 %lacks_residual, i64 0, i64 1
  %twice = mul i64 %rule, 2
  %norm = add i64 %twice, %is_sum
  %kinds = mul i64 %norm, KINDS
  %which = add i64 %kinds, %kind
  %kernel_at = getelementptr i64, ptr $kernels, i64 %which
  %kernel = load ptr, ptr %kernel_at
  %has_kernel = icmp ne ptr %kernel, null
  require %has_kernel

  %new = load ptr, ptr $PyObject_CallOneArg
  %lacks_y = icmp eq ptr %y_given, %none
  br i1 %lacks_y, label %make_y, label %look_at_y
make_y:
  %new_y = call ptr %new(ptr %make, ptr %x_object)
  store ptr %new_y, ptr %made_y
  %is_y_made = icmp ne ptr %new_y, null
  br i1 %is_y_made, label %look_at_y, label %end
look_at_y:
  %y_object = phi ptr [ %y_given, %has_kernel.holds ], [ %new_y, %make_y ]
  %sees_y = call i1 %look(ptr %y_object, ptr %slot_y, i32 WRITABLE)
  require %sees_y
  %is_y_like_x = call i1 @are_alike(ptr %slot_y, ptr %slot_x)
  require %is_y_like_x
  br i1 %lacks_residual, label %all_seen, label %look_at_residual
look_at_residual:
  %sees_residual = call i1 %look(ptr %residual_object, ptr %slot_residual, i32 0)
  require %sees_residual
  %is_residual_like_x = call i1 @are_alike(ptr %slot_residual, ptr %slot_x)
  require %is_residual_like_x
  br i1 %lacks_y, label %make_total, label %look_at_total
make_total:
  %new_total = call ptr %new(ptr %make, ptr %x_object)
  store ptr %new_total, ptr %made_total
  %is_total_made = icmp ne ptr %new_total, null
  br i1 %is_total_made, label %look_at_total, label %end
look_at_total:
  %total_object = phi ptr [ %total_given, %is_residual_like_x.holds ], [ %new_total, %make_total ]
  %sees_total = call i1 %look(ptr %total_object, ptr %slot_total, i32 WRITABLE)
  require %sees_total
  %is_total_like_x = call i1 @are_alike(ptr %slot_total, ptr %slot_x)
  require %is_total_like_x
  br label %all_seen
all_seen:
  %total_seen = phi ptr [ null, %is_y_like_x.holds ], [ %total_object, %is_total_like_x.holds ]
  PLACES
  OVERLAPS

  ; Parameters are read where they lie, unless something is to be made of them or lanes would reach behind them.
  %is_weight_alike = icmp eq i64 %weight_code, %code
  %is_bias_alike = icmp eq i64 %bias_code, %code
  %lacks_any_offset = xor i1 %has_offset, true
  %row_nbytes = mul i64 %features, %itemsize
  %fills_a_line = icmp uge i64 %row_nbytes, CACHE_LINE_NBYTES
  %is_long = icmp ugt i64 %features, CHUNK
  %is_few = icmp ult i64 %rows, FEW_ROWS
  %is_long_or_few = or i1 %is_long, %is_few
  %pays = or i1 %is_long_or_few, %is_single
  %are_alike = and i1 %is_weight_alike, %is_bias_alike
  %are_plain = and i1 %are_alike, %lacks_any_offset
  %are_direct = and i1 %are_plain, %fills_a_line
  %is_direct = and i1 %are_direct, %pays
  %direct = zext i1 %is_direct to i64
  TASK

  %few_elements = load i64, ptr $few_elements
  %is_much = icmp ugt i64 %size, %few_elements
  br i1 %is_much, label %unlock, label %run
unlock:
  %save = load ptr, ptr $PyEval_SaveThread
  %state = call ptr %save()
  br label %run
run:
  %held = phi ptr [ null, %is_apart.holds ], [ %state, %unlock ]
  %reached = call i64 %kernel(ptr %task, i64 0, i64 %rows)
  %is_held = icmp ne ptr %held, null
  br i1 %is_held, label %lock, label %ran
lock:
  %restore = load ptr, ptr $PyEval_RestoreThread
  call void %restore(ptr %held)
  br label %ran
ran:
  %is_complete = icmp eq i64 %reached, %rows
  br i1 %is_complete, label %complete, label %stopped
stopped:
  ; Where the kernel wrote to what it was given, and in place, the rest is to go on from there.
  %has_begun = icmp sgt i64 %reached, 0
  require %has_begun
  %was_given = xor i1 %lacks_y, true
  require %was_given
  %count = load ptr, ptr $PyLong_FromLongLong
  %row = call ptr %count(i64 %reached)
  br label %end
complete:
  call void %keep(ptr %y_object)
  br i1 %lacks_residual, label %end, label %pair
pair:
  call void %keep(ptr %total_seen)
  %tuple = load ptr, ptr $PyTuple_New
  %both = call ptr %tuple(i64 2)
  %is_pair = icmp ne ptr %both, null
  br i1 %is_pair, label %fill, label %spill
fill:
  %set = load ptr, ptr $PyTuple_SetItem
  call i32 %set(ptr %both, i64 0, ptr %y_object)
  call i32 %set(ptr %both, i64 1, ptr %total_seen)
  br label %end
spill:
  call void %drop(ptr %y_object)
  call void %drop(ptr %total_seen)
  br label %end
misfit:
  call void %keep(ptr %none)
  br label %end
end:
  %result = phi ptr [ %none, %misfit ], [ null, %make_y ], [ null, %make_total ], [ %row, %was_given.holds ],
                    [ %y_object, %complete ], [ %both, %fill ], [ null, %spill ]
  RELEASES
  call void @drop_made(ptr %made_y)
  call void @drop_made(ptr %made_total)
  ret ptr %result
}

; Let go of the memory of an array.
define internal void @release(ptr %slot) {
  %obj_at = getelementptr i8, ptr %slot, i64 OBJ
  %obj = load ptr, ptr %obj_at
  %is_had = icmp ne ptr %obj, null
  br i1 %is_had, label %had, label %end
had:
  %release = load ptr, ptr $PyBuffer_Release
  call void %release(ptr %slot)
  br label %end
end:
  ret void
}

define internal void @drop_made(ptr %made_at) {
  %made = load ptr, ptr %made_at
  %is_made = icmp ne ptr %made, null
  br i1 %is_made, label %drop_it, label %end
drop_it:
  %drop = load ptr, ptr $Py_DecRef
  call void %drop(ptr %made)
  br label %end
end:
  ret void
}
"""

_ARGUMENTS = (
    "rule_object", "x_object", "residual_object", "y_given", "total_given", "weight_object", "bias_object",
    "eps_object", "offset_object",
)  # fmt: skip
# A result, and the arrays that it must share nothing with, or be.
_OVERLAPS = (
    ("may_be_written", "y", "x"), ("may_be_written", "y", "residual"), ("may_be_written", "total", "x"),
    ("may_be_written", "total", "residual"), ("are_apart", "y", "total"), ("are_apart", "y", "weight"),
    ("are_apart", "y", "bias"), ("are_apart", "total", "weight"), ("are_apart", "total", "bias"),
)  # fmt: skip


def text() -> str:
    """The module, whose only public function is `fast_path`."""
    steps = {
        "SLOTS": _slots(), "ARGUMENTS": _arguments(), "PLACES": _places(), "OVERLAPS": _overlaps(), "TASK": _task(),
        "RELEASES": [f"call void @release(ptr %slot_{name})" for name in _SLOTS],
    }  # fmt: skip
    normalize = _NORMALIZE
    for name, lines in steps.items():
        normalize = normalize.replace(f"\n  {name}\n", "\n  " + "\n  ".join(lines) + "\n")
    found = _HEAD + views.TEXT + normalize
    found = re.sub(r"require (%\w+)", r"br i1 \1, label \1.holds, label %misfit\n\1.holds:", found)
    found = re.sub(r"^%(\w+\.holds:)", r"\1", found, flags=re.MULTILINE)
    found = re.sub(r"\$(\w+)", lambda name: _field(name[1]), found)
    words = _WORDS | views.WORDS
    return re.sub(r"\b[A-Z][A-Z0-9_]+\b", lambda word: str(words.get(word[0], word[0])), found)


def _field(name: str) -> str:
    return f"getelementptr (i8, ptr @record, i64 {getattr(Record, name).offset})"


def _slots() -> list[str]:
    lines = []
    for number, name in enumerate(_SLOTS):
        lines.append(f"%slot_{name} = getelementptr i8, ptr %slots, i64 {number * views.SLOT_NBYTES}")
        for field in ("OBJ", "PLACE"):
            lines.append(f"%{field.lower()}_of_{name} = getelementptr i8, ptr %slot_{name}, i64 {field}")
            lines.append(f"store i64 0, ptr %{field.lower()}_of_{name}")
    return lines


def _arguments() -> list[str]:
    lines = []
    for number, name in enumerate(_ARGUMENTS):
        lines.append(f"%{name}_at = getelementptr ptr, ptr %arguments, i64 {number}")
        lines.append(f"%{name} = load ptr, ptr %{name}_at")
    return lines


def _places() -> list[str]:
    """Where each array lies, and how many bytes it has."""
    lines = [f"%place_{name} = load i64, ptr %place_of_{name}" for name in _SLOTS]
    lines += [f"%nbytes_{name} = add i64 %nbytes, 0" for name in ("x", "residual", "y", "total")]
    lines.append("%weights = select i1 %is_scale, i64 1, i64 %features")
    for name, count in (("weight", "%weights"), ("bias", "%features")):
        lines.append(f"%{name}_itemsize = call i64 @itemsize(i64 %{name}_code)")
        lines.append(f"%nbytes_{name} = mul i64 {count}, %{name}_itemsize")
    return lines


def _overlaps() -> list[str]:
    lines, before = [], "true"
    for number, (question, result, other) in enumerate(_OVERLAPS):
        given = f"i64 %place_{result}, i64 %nbytes, i64 %place_{other}, i64 %nbytes_{other}"
        lines.append(f"%question_{number} = call i1 @{question}({given})")
        lines.append(f"%answer_{number} = and i1 {before}, %question_{number}")
        before = f"%answer_{number}"
    return [*lines, f"%is_apart = or i1 {before}, false", "require %is_apart"]


def _task() -> list[str]:
    lines = []
    for name, kind in Task._fields_:
        lines.append(f"%task_{name} = getelementptr i8, ptr %task, i64 {getattr(Task, name).offset}")
        number = "double" if kind is ctypes.c_double else "i64"
        lines.append(f"store {number} {_FILLED.get(name, '0')}, ptr %task_{name}")
    return lines
